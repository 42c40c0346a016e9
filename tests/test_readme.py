"""Every command, option, recipe, file, link and public name in the documents exists."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

import medcap
from medcap.cli import make_parser
from medcap.recipe import read_recipe
from medcap.recipe.reader import check_known

ROOT = Path(__file__).parents[1]
GENERATED = [ROOT / "MODEL_CARD.md"]  # tested in tests/publish
DOCUMENTS = [path for folder in ("", "docs") for path in sorted((ROOT / folder).glob("*.md")) if path not in GENERATED]
DOCUMENTS += sorted((ROOT / "recipes").rglob("*.md"))
SPACES = sorted((ROOT / "recipes").rglob("space.yaml"))
RECIPES = sorted({*(ROOT / "recipes").rglob("*.yaml")} - {*(ROOT / "recipes" / "accelerate").iterdir(), *SPACES})
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PROGRAM = r"(?:medcap|make|accelerate launch|python|sbatch) .+"
# lines of code blocks that are not commands of medcap: the shell, pip, SLURM's options
OTHER = r"(?:git clone|source|cd|pip|unzip|tensorboard|trackio|wandb|srun|#SBATCH|#) .+|"


def without_prefix(line: str) -> str:
    """Return a line of a shell without variables, and without the folder of the program."""
    return re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line).removeprefix(".venv/bin/")


def commands(path: Path) -> list[list[str]]:
    """Return the argv of every command in code blocks, inline code, comments of recipes and steps of workflows."""
    text = path.read_text()
    if path.suffix == ".md":
        blocks = re.findall(r"^```bash\n(.+?)^```$", text, re.M | re.S)
        lines = "\n".join(blocks).splitlines() + re.findall(r"^    (.+)$", text, re.M) + re.findall(r"`([^`]+)`", text)
    else:
        lines = re.findall(r"^(?:#\s+\w+ +|\s+- run: )(.+)$", text, re.M)
    lines = [without_prefix(line) for line in lines]
    return [shlex.split(line.split(" [")[0], comments=True) for line in lines if re.fullmatch(PROGRAM, line)]


EVERY_COMMAND = [(path, argv) for path in [*DOCUMENTS, *RECIPES, *SPACES, *WORKFLOWS] for argv in commands(path)]


@pytest.mark.parametrize("path", [ROOT / "README.md", *RECIPES, *SPACES, *WORKFLOWS], ids=lambda path: path.name)
def test_commands_are_found(path: Path) -> None:
    assert commands(path)


@pytest.mark.parametrize(
    ("path", "argv"), EVERY_COMMAND, ids=[f"{path.name}: {' '.join(argv)[:60]}" for path, argv in EVERY_COMMAND]
)
def test_every_command_exists(path: Path, argv: list[str]) -> None:
    if argv[0] == "make":
        check_make_target(argv[1])
    elif argv[0] == "accelerate":
        script = next(i for i, argument in enumerate(argv) if argument.endswith(".py"))
        assert (ROOT / argv[script]).is_file()
        read_recipe(with_existing_recipe(argv[script + 1 :]))
    elif argv[0] == "sbatch":
        script = next(i for i, argument in enumerate(argv) if argument.endswith(".sh"))
        assert (ROOT / argv[script]).is_file()
        read_recipe(with_existing_recipe(argv[script + 1 :]))
    elif argv[0] == "python":
        assert argv[1] == "-m" or argv[1].startswith("-") or (ROOT / argv[1]).is_file()
    else:
        check_medcap_command(argv[1:])


def check_make_target(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"target: ([\w-]+)", (ROOT / ".github/workflows/versions.yml").read_text())
    for name in targets if target == "${{" else [target]:  # a workflow's matrix
        assert re.search(rf"^{name}:", makefile, re.M), name


def check_medcap_command(argv: list[str]) -> None:
    """Parse a complete command; of a command without options only check that it exists."""
    parser = make_parser()
    if argv[0] == "train" and "--help" not in " ".join(argv):
        read_recipe(with_existing_recipe(without_launcher_options(argv[1:])))
    elif argv[0] == "train":
        assert argv[0] in parser.format_help()
    elif any(argument.startswith("-") for argument in argv):
        parser.parse_args(argv)  # exits if an option is unknown or missing
    else:
        with pytest.raises(SystemExit, match="^0$"):
            parser.parse_args([*argv, "--help"])


def without_launcher_options(argv: list[str]) -> list[str]:
    """Remove the options of `medcap train` that are no keys, and check them; add a recipe to a command without one."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--accelerate", nargs="?", default="cpu")
    parser.add_argument("--num_processes", type=int)
    options, rest = parser.parse_known_args(argv)
    if options.accelerate and not options.accelerate.isupper():  # NAME
        assert (ROOT / "recipes/accelerate" / f"{options.accelerate}.yaml").is_file()
    return rest if "--config" in rest else ["--config", "RECIPE", *rest]


def with_existing_recipe(argv: list[str]) -> list[str]:
    """Replace RECIPE, RUN/recipe.yaml and SEARCH/best.yaml, which commands write, by a recipe of the repository."""
    example = str(ROOT / "recipes/phantom/lora.yaml")
    return [
        example if argument == "RECIPE" or argument.endswith(("recipe.yaml", "best.yaml"))
        else str(ROOT / argument) if argument.endswith(".yaml")
        else argument
        for argument in argv
    ]  # fmt: skip


def test_readme_imports_only_public_names() -> None:
    imports = re.findall(r"^from medcap import (.+)$", (ROOT / "README.md").read_text(), re.M)
    names = {name for line in imports for name in line.split(", ")}
    assert names
    assert names <= set(medcap.__all__)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_line_of_a_bash_block_is_checked(path: Path) -> None:
    """What needs Docker, Windows or another program is in blocks of the language `console`."""
    blocks = re.findall(r"^```bash\n(.+?)^```$", path.read_text(), re.M | re.S)
    lines = [without_prefix(line) for line in "\n".join(blocks).splitlines()]
    assert [line for line in lines if not re.fullmatch(f"{PROGRAM}|{OTHER}", line)] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_key_in_a_yaml_block_exists(path: Path) -> None:
    for block in re.findall(r"^```yaml\n(.+?)^```$", path.read_text(), re.M | re.S):
        for key in yaml.safe_load(block):
            check_known(key)  # raises RecipeError


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_named_file_exists(path: Path) -> None:
    text = path.read_text()
    named = re.findall(r"`((?:recipes|scripts|medcap|docs|tests|benchmarks|notebooks)/[\w./-]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_has_a_target(path: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", path.read_text()) if not link.startswith("http")]
    for target, _, anchor in (link.partition("#") for link in links):
        file = path.parent / target if target else path
        assert file.exists(), target
        assert not anchor or anchor in headings(file), anchor


def headings(path: Path) -> list[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_every_recipe_is_in_the_readme(path: Path) -> None:
    assert str(path.relative_to(ROOT)) in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "accelerate").glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_every_configuration(path: Path) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    assert load_config_from_file(str(path)).num_processes == yaml.safe_load(path.read_text())["num_processes"]


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.search(r"\.PHONY: (.+)", makefile)[1].split():
        assert re.search(rf"^{target}:.*## ", makefile, re.M), target
