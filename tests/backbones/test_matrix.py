"""Every objective on every family: a step of training, writing and embedding, or words that say why not."""

import re
from pathlib import Path

import pytest
from matrix import OBJECTIVES, outcome, savings, shown, table
from processors import FAMILIES, can_be_read
from transformers import CLIPConfig, Siglip2Config, SiglipConfig

from alignlab.backbones.tiny import write_tiny_dual
from alignlab.experiment.config import describe_objectives

README = Path(__file__).parents[2] / "README.md"
DUAL = {"CLIP": CLIPConfig, "SigLIP": SiglipConfig, "SigLIP 2": Siglip2Config}
READ = [name for name in FAMILIES if can_be_read(name)]
UNREAD = set(FAMILIES) - set(READ)


@pytest.fixture(scope="module")
def outcomes(family_path, tmp_path_factory):
    """What comes of each objective on each family, and the savings that each family has."""
    folders = {name: family_path(name) for name in READ}
    for name, kind in DUAL.items():
        folders[name] = tmp_path_factory.mktemp("dual")
        write_tiny_dual(folders[name], kind)
    examples, found = shown(), {}
    for family, folder in folders.items():
        text_tower = folders["LLaVA"] if family in DUAL else folder
        found[family] = {name: outcome(name, folder, text_tower, examples) for name in OBJECTIVES}
    return found, {family: savings(folder, examples) for family, folder in folders.items()}, folders


def nameless(message, folder, objective):
    """What is said of any such model and objective: no path, no class, no objective."""
    message = message.replace(str(folder), "it").replace(f"{objective} ", "it ")
    exact = {
        r"^backbone\.path: ": "",
        r"it, an? \w+,": "it",
        r"the sequences .*?, but": "more, but",
        r"; [\w, ]+ needs a": "; the rest needs a",
    }
    for before, after in exact.items():
        message = re.sub(before, after, message)
    return message[0].upper() + message[1:]


def test_the_whole_catalogue_is_in_the_matrix():
    assert {entry.name for entry in describe_objectives()} == set(OBJECTIVES)


def test_likelihood_and_contrast_run_on_every_family(outcomes):
    found, _, _ = outcomes
    everywhere = "MLE", "CAL", "PLoRA", "SeVa", "InfoNCE", "UniME", "CLIP", "SigLIP", "Mixture"
    assert {family: [name for name in everywhere if found[family][name]] for family in READ} == {
        family: [] for family in READ
    }


def test_what_needs_words_is_refused_where_there_is_no_language_model(outcomes):
    found, _, _ = outcomes
    for family in DUAL:
        assert all("generates text" in found[family][name] for name in ("MLE", "CAL", "SeVa", "Mixture"))
        assert found[family]["InfoNCE"] is None and found[family]["LLM2CLIP"] is None


def test_the_table_of_the_readme_is_what_happens(outcomes):
    found, saved, folders = outcomes
    plain = {
        family: {name: message and nameless(message, folders[family], name) for name, message in row.items()}
        for family, row in found.items()
    }
    begin, end = "<!-- families:begin -->\n", "<!-- families:end -->"
    written = README.read_text().partition(begin)[2].partition(end)[0]
    lines = [line for line in written.splitlines() if line.strip("| ").partition(" |")[0] not in UNREAD]
    assert lines == table(plain, saved).splitlines()
