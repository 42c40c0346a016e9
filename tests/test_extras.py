"""The advice to install an extra works wherever medcap was installed from."""

import json
from importlib import metadata

import pytest

from medcap import extras
from medcap.extras import install_command

REQUIRES = ["numpy>=2.0", "pydicom>=3.0.1; extra == 'dicom'", 'gradio>=6; extra == "demo"']


@pytest.fixture
def installed(monkeypatch):
    """Return a function that pretends an installation with this direct_url.json; None for none."""

    class Distribution:
        def __init__(self, origin):
            self.origin = origin

        def read_text(self, name):
            assert name == "direct_url.json"
            return None if self.origin is None else json.dumps(self.origin)

    def install(origin):
        monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(origin))
        monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)

    return install


def test_folder_and_wheel_are_named_by_their_path(installed, tmp_path):
    folder = tmp_path / "my medcap"
    folder.mkdir()
    wheel = folder / "medcap-1.0-py3-none-any.whl"
    wheel.touch()
    installed({"url": folder.as_uri(), "dir_info": {"editable": True}})
    assert install_command("dicom") == f"pip install -e '{folder}[dicom]'"
    installed({"url": folder.as_uri(), "dir_info": {}})
    assert install_command("demo") == f"pip install '{folder}[demo]'"
    installed({"url": wheel.as_uri(), "archive_info": {"hash": "sha256=0"}})
    assert install_command("dicom") == f"pip install '{wheel}[dicom]'"


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'medcap[dicom]'"),
        ({"url": "https://x.org/m.whl", "archive_info": {}}, "pip install 'medcap[dicom] @ https://x.org/m.whl'"),
        (
            {"url": "https://x.org/m.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "pip install 'medcap[dicom] @ git+https://x.org/m.git@abc'",
        ),
        ({"url": "file:///nowhere/m.whl", "archive_info": {}}, "pip install 'pydicom>=3.0.1'"),
    ],
    ids=["index", "archive", "repository", "removed wheel"],
)
def test_command_for_other_sources(installed, origin, command):
    installed(origin)
    assert install_command("dicom") == command


def test_source_that_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    folder = extras.Path(extras.__file__).parents[1]
    assert install_command("dicom") == f"pip install '{folder}[dicom]'"
