"""Reference picture and prompt of `python -m infer` without arguments."""

from pathlib import Path

SUBJECT = Path(__file__).with_suffix(".png")  # of a person who is not in the training data
PROMPT = (
    "A portrait of a person shrugging with both palms up, in a black V-neck over yellow sleeves, "
    "with a calm smile, on a teal background."
)
# Captions as in the training of the small model, which knows whole ones best.
EXAMPLES = (
    PROMPT,
    "A bust of a character keeping still with arms at the sides, wearing a buttoned green shirt "
    "with a collar, with tears of laughter, on a lavender background.",
    "A full-length drawing of a character in a black jacket and pink trousers, sitting and "
    "hugging the knees, with a determined smile, in front of a teal wall.",
    "A drawing of someone dancing like a robot on plain lavender, in a black top and yellow "
    "trousers, with a calm smile.",
    "On plain white, a drawing of a person walking, wearing a black T-shirt and purple trousers, "
    "with raised, unhappy brows.",
)
MODEL_NAME = "small model of ic_jax"  # in the metadata of its pictures
NO_MODEL = (
    "No --model given: using the small model that comes with ic_jax, which knows drawn people only "
    "(docs/small-model.md). Its pictures are small; --grid sheet.png also shows them enlarged."
)
NO_PROMPT = f"Reference: infer/{SUBJECT.name} (not in the training data). Prompt: {PROMPT}"
