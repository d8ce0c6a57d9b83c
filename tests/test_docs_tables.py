"""Tables of the docs that say what is read and what is refused: each row is held by a test."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
# Start of a row's first cell -> the test on such files, most of them written by the real library.
CONVERT = {
    "folders of diffusers": "test_convert::test_every_tensor_comes_back_bit_equal",
    "`fp16` and `bf16` variants": "test_convert_files::test_variants_and_shards",
    "diffusers' or transformers' names in one file": "test_convert_files::test_a_file_a_component",
    "Black Forest Labs'": "test_convert::test_bfl_files_there_and_back_give_the_same_model",
    "ComfyUI's `t5xxl_*`": "test_convert_files::test_a_file_a_component",
    "all in one file": "test_convert_files::test_all_in_one",
    "a checkpoint of two towers": "test_convert::test_checkpoints_with_more_than_one_tower",
    "fp8; scaled fp8": "test_convert_files::test_scaled_fp8",
    "GGUF of FLUX and of T5": "test_convert_files::test_gguf",
    "an adapter's `.bin`": "test_convert_files::test_an_adapter_among_other_entries",
    "4 and 8 bits of bitsandbytes": "test_convert_kinds::test_what_else_a_file_may_be",
    "FLUX.1 Fill, Depth, Canny": "test_convert_kinds::test_another_single_file_is_named",
    "a pickle that asks": "test_convert_pickles::"
    "test_a_pickle_with_code_is_refused_and_nothing_runs",
}
EVERY = "test_lora_layouts::test_every_layout_gives_each_map_its_change"
REFUSED = "test_lora_refusals::test_files_that_cannot_be_applied_say_why"
TEXT = "test_lora_layouts::test_text_encoders"
LORAS = {
    "peft, diffusers, ai-toolkit": "test_train_lora::"
    "test_the_file_gives_diffusers_and_us_the_trained_velocity",
    "the same with an adapter's name": EVERY,
    "peft without a prefix": EVERY,
    "peft itself": "test_train_lora::test_a_file_of_peft_itself_is_what_peft_computes",
    "diffusers' names, kohya's matrices": EVERY,
    "old diffusers": EVERY,
    "kohya (sd-scripts)": "test_lora_layouts::test_the_published_converters_agree",
    "ComfyUI": EVERY,
    "peft of BFL's names": EVERY,
    "XLabs": "test_lora_layouts::test_the_published_converters_agree",
    "OneTrainer": EVERY,
    "CLIP in any of them": TEXT,
    "T5 in any of them": TEXT,
    "trained words of OneTrainer": "test_lora_layouts::"
    "test_what_a_model_lacks_is_passed_over_and_said",
    "BFL's control LoRAs": REFUSED,
    "EasyControl": REFUSED,
    "LyCORIS'": REFUSED,
    "DoRA": REFUSED,
    "differences of whole weights": REFUSED,
    "Stable Diffusion's": REFUSED,
}


@pytest.mark.parametrize(
    ("page", "head", "tests"),
    [("convert.md", "| file | |", CONVERT), ("loras.md", "| layout | keys | |", LORAS)],
)
def test_every_row_has_its_test(page, head, tests):
    text = (ROOT / "docs" / page).read_text()
    table = text[text.index(head) :].partition("\n\n")[0].splitlines()[2:]
    cells = [line.split("|")[1].strip() for line in table]
    assert len(cells) == len(tests)
    for cell, (start, test) in zip(cells, tests.items(), strict=True):
        assert cell.startswith(start)
        file, _, name = test.partition("::")
        tree = ast.parse((HERE / f"{file}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_numbered_fault_has_its_tests():
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", text, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 17))
    for _, tests in rows:
        for file, name in re.findall(r"`(\w+)::(\w+)`", tests):
            assert f"\ndef {name}(" in (HERE / f"{file}.py").read_text(), name


def test_user_pages_name_no_tests():
    for page in ("convert.md", "loras.md"):
        assert not re.search(r"\btests?/|\btest_", (ROOT / "docs" / page).read_text())
