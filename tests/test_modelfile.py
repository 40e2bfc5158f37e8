from pathlib import Path

import pytest

from conftest import one_line, room
from test_snapshot import edit


def test_it_is_the_familys_file_with_from_filled_in(chain):
    written, source = (chain / "gguf/Modelfile").read_text(), Path("modelfiles/pirate.Modelfile").read_text()
    assert written == source.replace("FROM ./pirate-Q4_K_M.gguf", "FROM ./pirate-nano-Q4_K_M.gguf") != source


def test_another_quant_type(chained):
    assert room("modelfile", "pirate-nano", QUANT="Q8_0").returncode == 0
    assert "FROM ./pirate-nano-Q8_0.gguf\n" in Path("outputs/pirate-nano/gguf/Modelfile").read_text()
    one_line(room("modelfile", "pirate-nano", QUANT="Q2_K"), "QUANT=Q2_K: ", "has F16, Q4_K_M, Q8_0")


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("{{- range .Messages }}", "<|begin_of_text|>{{- range .Messages }}", "TEMPLATE writes <|begin_of_text|>"),
        ("{{- range .Messages }}", "{{ .System }}{{- range .Messages }}", "prints .System and ranges over .Messages"),
        ("PARAMETER stop <|eot_id|>\n", "", "no `PARAMETER stop <|eot_id|>`"),
        ("num_ctx 2048", "num_ctx 999999", "at most the model's 2048"),
        ("PARAMETER num_ctx 2048\n", "", "num_ctx is not set"),
        ("PARAMETER temp", "PARAMETR temp", "unknown instruction PARAMETR"),
    ],
)
def test_what_parts_from_the_training_is_named(chained, old, new, words):
    edit("modelfiles/pirate.Modelfile", old, new)
    one_line(room("modelfile", "pirate-nano"), "modelfiles/pirate.Modelfile", words)


def test_a_cut_gguf_is_not_handed_on(chained):
    path = Path("outputs/pirate-nano/gguf/pirate-nano-Q4_K_M.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    one_line(room("modelfile", "pirate-nano"), "pirate-nano-Q4_K_M.gguf: not the file that was proven")
