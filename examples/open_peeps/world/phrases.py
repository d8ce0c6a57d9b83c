"""Phrases for every part, written from the drawings.

{c} stands for the clothing colour, {h} for the hair colour, {s} for the skin colour. One fill
colours neck, arms and hands as well, so a short-sleeved black shirt is worn over sleeves of {c}.
"""

FRAMINGS = {
    "bust": ("a half-length drawing of", "a portrait of", "a waist-up picture of", "a bust of"),
    "sitting": ("a full-length drawing of", "a full-body picture of", "a drawing of"),
    "standing": ("a full-length drawing of", "a full-body picture of", "a drawing of"),
}
PEOPLE = ("a person", "someone", "a character")

STILL = ("with arms hanging down", "keeping still with arms at the sides", "simply posing")
ARMS_CROSSED = ("with crossed arms", "with folded arms", "crossing both arms")
HUGGING_KNEES = (
    "sitting on the ground with knees drawn up",
    "sitting with both hands on the knees",
    "sitting and hugging the knees",
)
KNEELING = (
    "kneeling with hands resting behind",
    "kneeling on the floor and leaning back on the hands",
    "sitting on the heels",
)
SQUATTING = ("squatting", "crouching down", "squatting with arms on the knees")
ONE_KNEE_UP = (
    "sitting on the ground with one knee up",
    "sitting on the floor, one leg folded and one knee raised",
    "resting on the ground with an arm on one raised knee",
)
PROSTHETIC_HIP = (
    "standing with a hand on the hip and a prosthetic foot",
    "posing with one hand at the hip and an artificial lower leg",
)
HAND_ON_HIP = (
    "standing with a hand on the hip",
    "posing with one hand at the hip",
    "standing tall, one hand on the hip",
)
STANDING_CROSSED = ("standing with crossed arms", "standing with folded arms")
AT_EASE = ("standing at ease", "standing casually with legs apart", "standing relaxed in sneakers")
POINTING = ("standing and pointing a finger", "standing and pointing up to the side")
RESTING = (
    "standing relaxed with a hand at the waist",
    "leaning back with one hand on the belt",
    "taking a rest on both feet, a hand at the waist",
)
ROBOT = ("doing the robot dance", "dancing like a robot", "dancing the robot")
PROSTHETIC = (
    "standing upright on a prosthetic leg",
    "standing straight with an artificial leg",
)
UPRIGHT = ("standing upright", "standing straight with arms down", "standing still")
WALKING = ("walking", "walking along", "taking a walk", "strolling")

# {body: (what the person does, what the person wears)}
BODIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ArmsCrossed": (ARMS_CROSSED, ("a black T-shirt over {c} sleeves",)),
    "BlazerBlackTee": (STILL, ("a {c} blazer over a black shirt", "an open {c} jacket over black")),
    "ButtonShirt": (STILL, ("a {c} button-up shirt", "a buttoned {c} shirt with a collar")),
    "Coffee": (
        ("holding a cup of coffee", "having a mug of coffee", "drinking coffee"),
        ("a {c} shirt", "a {c} shirt with long sleeves"),
    ),
    "Device": (
        ("looking at a phone", "holding up a smartphone", "using a mobile phone"),
        ("a {c} top with black flecks", "a speckled {c} sweater"),
    ),
    "DotJacket": (
        ("pointing to the side", "pointing a finger sideways"),
        ("a {c} polka-dot jacket over a black shirt", "a dotted {c} jacket over black"),
    ),
    "Dress": (
        STILL,
        ("a black off-the-shoulder dress over {c}", "a black puff-sleeved dress over a {c} top"),
    ),
    "Explaining": (
        ("explaining something with one hand", "gesturing with a hand at the chest"),
        ("a {c} T-shirt with black stripes", "a striped {c} T-shirt"),
    ),
    "FurJacket": (
        STILL,
        ("a black fur jacket over a {c} top", "a black jacket with a {c} collar over {c}"),
    ),
    "Gaming": (
        ("playing a video game", "holding a game controller", "gaming with a controller"),
        ("a {c} hoodie", "a {c} hooded sweater"),
    ),
    "Geek": (
        ("typing on a laptop", "working on a laptop", "holding a laptop"),
        ("a {c} polo shirt", "a {c} shirt with a collar"),
    ),
    "Hoodie": (STILL, ("a {c} hoodie", "a zipped {c} hoodie", "a {c} hooded jacket")),
    "Paper": (
        ("reading a sheet of paper", "holding a note", "looking at a piece of paper"),
        ("a black sweater with {c} flecks", "a black sweater flecked with {c}"),
    ),
    "PocketShirt": (
        ("with both hands on the hips", "standing with hands on hips"),
        ("a black T-shirt with a {c} pocket", "a black T-shirt with a wavy {c} breast pocket"),
    ),
    "PointingUp": (
        ("pointing up with one finger", "raising a finger", "holding up a finger"),
        ("a black sweater with {c} squiggles", "a black top with squiggly {c} lines"),
    ),
    "PoloSweater": (
        STILL,
        ("a black sweater with a {c} collar", "a black sweater over a {c} polo"),
    ),
    "Selena": (
        STILL,
        ('a black T-shirt with "Selena" in {c}', 'a black T-shirt that says "Selena" in {c}'),
    ),
    "Shirt": (STILL, ("a plain {c} T-shirt", "a {c} T-shirt", "a simple {c} T-shirt")),
    "ShirtCoat": (
        STILL,
        ("a {c} coat over a striped shirt", "a {c} blazer over a {c} shirt with stripes"),
    ),
    "ShirtFilled": (STILL, ("a plain black T-shirt over {c} sleeves", "a black T-shirt over {c}")),
    "SportyShirt": (
        STILL,
        ("a black sports shirt with {c} trim", "a black ringer T-shirt with {c} edges"),
    ),
    "StripedShirt": (STILL, ("a {c} T-shirt with black stripes", "a striped {c} T-shirt")),
    "Sweater": (
        ARMS_CROSSED,
        ("a speckled {c} sweater", "a {c} wool sweater with a ribbed collar"),
    ),
    "SweaterDots": (
        STILL,
        ("a fluffy black sweater with {c} flecks", "a woolly black sweater dotted with {c}"),
    ),
    "Thunder": (
        STILL,
        ("a black T-shirt with a lightning bolt over {c}", "a black lightning shirt over {c}"),
    ),
    "Turtleneck": (STILL, ("a black turtleneck", "a plain black turtleneck sweater")),
    "Whatever": (
        ("shrugging", "shrugging with both palms up", "giving a shrug"),
        ("a black V-neck T-shirt over {c} sleeves", "a black V-neck over {c}"),
    ),
    "Bike": (
        ("riding a bicycle", "riding a bike with a basket", "cycling"),
        ("a {c} jacket and black trousers",),
    ),
    "ClosedLegBW": (HUGGING_KNEES, ("a black jacket and {c} trousers",)),
    "ClosedLegWB": (HUGGING_KNEES, ("a {c} jacket and black trousers",)),
    "CrossedLegs": (
        ("sitting with legs crossed", "sitting with one leg over the other"),
        ("a {c} sweater and black trousers",),
    ),
    "HandsBackBW": (KNEELING, ("a black T-shirt and {c} trousers",)),
    "HandsBackWB": (KNEELING, ("a {c} T-shirt and black trousers",)),
    "MediumBW": (SQUATTING, ("a black T-shirt and {c} trousers",)),
    "MediumWB": (SQUATTING, ("a {c} T-shirt and black trousers",)),
    "OneLegUpBW": (ONE_KNEE_UP, ("a black T-shirt and {c} trousers",)),
    "OneLegUpWB": (ONE_KNEE_UP, ("a {c} T-shirt and black trousers",)),
    "Wheelchair": (
        ("sitting in a wheelchair and waving", "waving from a wheelchair"),
        ("a {c} suit over a black shirt", "a {c} jacket and {c} trousers"),
    ),
    "BlazerBW": (PROSTHETIC_HIP, ("a {c} blazer over black and cropped {c} trousers",)),
    "BlazerPantsBW": (HAND_ON_HIP, ("a {c} suit over a black shirt", "a {c} blazer and trousers")),
    "BlazerPantsWB": (HAND_ON_HIP, ("a {c} blazer and black trousers",)),
    "BlazerWB": (PROSTHETIC_HIP, ("a {c} blazer and cropped black trousers",)),
    "CrossedArmsBW": (STANDING_CROSSED, ("a black sweater and {c} trousers",)),
    "CrossedArmsWB": (STANDING_CROSSED, ("a {c} sweater and black trousers",)),
    "DocProtectiveClothe": (
        UPRIGHT,
        ("{c} surgical scrubs and white shoe covers", "{c} protective clothing and white shoes"),
    ),
    "EasingBW": (AT_EASE, ("an open {c} shirt over black and {c} trousers",)),
    "EasingWB": (AT_EASE, ("an open {c} shirt and black trousers",)),
    "PointingFingerBW": (POINTING, ("a black sweater, {c} trousers and black boots",)),
    "PointingFingerWB": (POINTING, ("a {c} sweater, black trousers and black boots",)),
    "PolkaDots": (
        UPRIGHT,
        ("a {c} top with black polka dots and {c} trousers", "a dotted {c} top and {c} trousers"),
    ),
    "RestingBW": (RESTING, ("a black sweater and {c} trousers",)),
    "RestingWB": (RESTING, ("a {c} sweater and black trousers",)),
    "RoboDanceBW": (ROBOT, ("a black top and {c} trousers",)),
    "RoboDanceOutline": (ROBOT, ("a {c} top and {c} trousers", "nothing but {c} clothes")),
    "RoboDanceWB": (ROBOT, ("a {c} top and black trousers",)),
    "ShirtBW": (PROSTHETIC, ("a black shirt and {c} shorts",)),
    "ShirtPantsBW": (UPRIGHT, ("a black shirt and {c} trousers",)),
    "ShirtPantsWB": (UPRIGHT, ("a {c} shirt and black trousers",)),
    "ShirtWB": (PROSTHETIC, ("a {c} shirt and black shorts",)),
    "WalkingBW": (WALKING, ("a black T-shirt and {c} trousers",)),
    "WalkingFilled": (WALKING, ("a black T-shirt over {c} sleeves, black trousers and {c} shoes",)),
    "WalkingWB": (WALKING, ("a {c} T-shirt and black trousers",)),
}

# To follow "with".
FACES = {
    "Angry": ("an angry scowl", "an angry look", "an angry face and a crooked mouth"),
    "Awe": ("huge round eyes, in awe", "wide shining eyes, amazed", "an awed, starry-eyed look"),
    "Blank": ("a blank look", "a bored, blank face", "half-closed, indifferent eyes"),
    "Calm": ("a calm smile", "a calm, contented smile", "happy closed eyes and a small smile"),
    "CalmNM": ("lowered eyes and no mouth", "calm, lowered eyelids and no mouth"),
    "Cheeky": ("a cheeky look", "a cheeky pout and one lowered brow", "a mischievous look"),
    "CheersNM": ("cheerful closed eyes and no mouth", "laughing eyes and no mouth"),
    "Concerned": ("a concerned look", "an upset face and an open mouth", "raised, unhappy brows"),
    "ConcernedFear": ("a worried, fearful look", "a frightened wince", "a scared, worried face"),
    "Contempt": ("a look of contempt", "a haughty look and lowered eyelids", "a disdainful face"),
    "Cute": ("a cute smile", "a sweet smile and fluttering lashes", "a cute, dreamy look"),
    "Driven": ("a determined smile", "a driven look", "lowered brows and a determined smile"),
    "EatingHappy": ("a full mouth, chewing happily", "a happy chewing face"),
    "Explaining": ("an open, talking mouth", "a mouth wide open, explaining", "a talking face"),
    "EyesClosed": ("closed eyes under a flat brow", "eyes shut below one straight brow"),
    "Fear": ("round, fearful eyes", "a look of fear", "wide eyes and a flat, frightened mouth"),
    "Hectic": ("a hectic, stressed look", "bulging eyes and clenched teeth", "a frantic face"),
    "LoveGrin": ("hearts for eyes and an open grin", "heart eyes and an open-mouthed smile"),
    "LoveGrinTeeth": ("hearts for eyes and a toothy grin", "heart eyes and bared teeth"),
    "OldAged": ("a wry, lined face", "a long nose and a wry, wrinkled smile"),
    "Rage": ("a face full of rage", "furious round eyes, shouting", "an enraged, shouting face"),
    "Serious": ("a serious look", "a serious face and a straight brow", "an earnest look"),
    "Smile": ("a friendly smile", "open eyes and a gentle smile", "a smile"),
    "SmileBig": ("a huge toothy grin", "a very big grin", "squeezed eyes and a huge grin"),
    "SmileLol": ("tears of laughter", "a face crying with laughter", "a tearful, laughing face"),
    "SmileNM": ("open, friendly eyes and no mouth", "round, open eyes and no mouth"),
    "SmileTeeth": ("a smile that shows the teeth", "open eyes and a toothy smile"),
    "Solemn": ("a solemn, downcast look", "a sad frown", "sad eyes and a downturned mouth"),
    "Suspicious": ("a suspicious look", "one raised eyebrow, suspicious", "a sceptical look"),
    "Tired": ("a tired look", "tired, drooping eyes", "a weary face"),
    "VeryAngry": ("a furious frown", "a very angry face", "a glare and a downturned mouth"),
}

HAIR = {
    "Afro": ("a round {h} afro", "{h} hair in an afro"),
    "Bald": ("a bald head outlined in {h}",),
    "BaldSides": ("a bald head outlined in {h} with tufts at the sides",),
    "BaldTop": ("a bald head with a few {h} hairs on top",),
    "Bangs": ("long hair with bangs drawn in {h} lines",),
    "BangsFilled": ("a {h} bob with bangs", "straight {h} hair with bangs"),
    "BantuKnots": ("{h} Bantu knots",),
    "Beanie": ("a beanie with a {h} brim", "a knitted beanie over {h} hair"),
    "Bun": ("{h} hair in a bun", "a round {h} bun"),
    "BunCurly": ("curly {h} hair in a high bun", "a big curly {h} bun"),
    "BunFancy": ("a {h} bun tied with a bow", "{h} hair tied up with a scarf"),
    "Buns": ("many little {h} buns", "{h} hair in several small buns"),
    "CornRows": ("{h} cornrows in a ponytail",),
    "CornRowsFilled": ("a thick braided {h} ponytail", "{h} cornrows in a thick braid"),
    "FlatTop": ("a {h} flat top",),
    "FlatTopLong": ("a tall {h} flat top", "a very high {h} flat top"),
    "GrayBun": ("hair in a bun drawn in {h} lines",),
    "GrayMedium": ("parted chin-length hair drawn in {h} lines",),
    "GrayShort": ("short swept hair drawn in {h} lines",),
    "HatHip": ("a wide-brimmed {h} hat",),
    "Hijab": ("a {h} hijab", "a {h} headscarf"),
    "Long": ("long wavy {h} hair", "long loose {h} hair"),
    "LongAfro": ("a huge {h} afro", "an enormous {h} afro"),
    "LongBangs": ("very long {h} hair with bangs",),
    "LongCurly": ("long curly {h} hair", "big {h} curls"),
    "Medium": ("{h} hair curled out at the neck", "medium {h} hair with curled tips"),
    "MediumBangs": ("curly bangs and a low ponytail drawn in {h} lines",),
    "MediumBangsFilled": ("thick medium {h} hair with bangs",),
    "MediumLong": ("smooth shoulder-length {h} hair", "{h} hair down to the shoulders"),
    "MediumShade": ("shaggy {h} hair with bangs", "layered {h} hair with bangs"),
    "MediumShort": ("a short {h} bob", "chin-length {h} hair"),
    "MediumStraight": ("straight {h} hair parted at the side",),
    "Mohawk": ("a mohawk outlined in {h}",),
    "MohawkDino": ("a spiky dinosaur mohawk outlined in {h}",),
    "Pomp": ("a {h} pompadour", "a {h} quiff"),
    "ShavedRight": ("{h} hair shaved on one side",),
    "ShavedSides": ("curly {h} hair with shaved sides",),
    "ShavedWavy": ("wild wavy {h} hair with a shaved side",),
    "Short": ("short {h} hair", "a {h} buzz cut"),
    "ShortCurly": ("short {h} hair with curls at the neck",),
    "ShortMessy": ("short messy {h} hair",),
    "ShortScratch": ("very short {h} hair with a straight fringe line",),
    "ShortVolumed": ("short full {h} hair", "thick short {h} hair"),
    "ShortWavy": ("a wavy quiff drawn in {h} lines",),
    "Turban": ("a turban outlined in {h}",),
    "Twists": ("short {h} twists",),
    "TwistsVolumed": ("thick {h} twists", "voluminous {h} twists"),
}
FACIAL_HAIR = {
    "Chin": ("a {h} chin-strap beard",),
    "Dali": ("a thin curled {h} moustache", "a {h} Dali moustache"),
    "Full": ("a full {h} beard",),
    "FullMajestic": ("a huge full {h} beard", "a majestic {h} beard"),
    "FullMedium": ("a thick {h} beard and moustache",),
    "Goatee": ("a {h} goatee and moustache",),
    "GoateeCircle": ("a round {h} goatee", "a {h} circle beard"),
    "GrayFull": ("a white beard edged in {h}",),
    "Handlebars": ("a big {h} handlebar moustache",),
    "Imperial": ("a {h} imperial moustache",),
    "MajesticHandlebars": ("a giant curling {h} moustache", "an enormous long {h} moustache"),
    "MoustacheThin": ("a thin {h} moustache",),
    "None": (),
    "Painters": ("a white moustache edged in {h}",),
    "PaintersFilled": ("a bushy {h} moustache",),
    "Swashbuckler": ("a swashbuckler's {h} moustache", "a flat {h} moustache"),
    "Yosemite": ("a long drooping {h} moustache",),
}
ACCESSORIES = {
    "Eyepatch": ("an eyepatch", "a black eyepatch"),
    "GlassAviator": ("aviator glasses",),
    "GlassButterfly": ("butterfly glasses", "black cat-eye glasses"),
    "GlassButterflyOutline": ("white butterfly glasses", "white cat-eye glasses"),
    "GlassClubmaster": ("browline glasses",),
    "GlassRound": ("thin round glasses",),
    "GlassRoundThick": ("thick round glasses",),
    "None": (),
    "SunglassClubmaster": ("browline sunglasses",),
    "SunglassWayfarer": ("black sunglasses", "wayfarer sunglasses"),
}
SKIN = ("{s} skin",)
GROUND = (
    "on a {g} background",
    "against a {g} background",
    "in front of a {g} wall",
    "on plain {g}",
)
