"""A private name that is gone stops the program with one line that says what to install.

pytest tests/test_private_hooks.py
"""

import importlib

import pytest

from medcap.private_hooks import HOOKS, MissingHookError, check_hooks

LIBRARIES = ("transformers", "torch", "pydicom")
CLASS_HOOKS = [hook for hook in HOOKS if not hook.on_instance]


@pytest.mark.parametrize("library", LIBRARIES)
def test_installed_library_has_every_hook(library):
    check_hooks(library)


def test_every_hook_belongs_to_a_checked_library():
    assert {hook.owner.partition(".")[0] for hook in HOOKS} == set(LIBRARIES)


@pytest.mark.parametrize("hook", CLASS_HOOKS, ids=lambda hook: hook.name)
def test_removed_hook_fails_loudly(hook, monkeypatch):
    module, _, name = hook.owner.rpartition(".")
    owner = importlib.import_module(module)
    owner = getattr(owner, name) if hasattr(owner, name) else importlib.import_module(hook.owner)
    monkeypatch.delattr(owner, hook.name)
    library = hook.owner.partition(".")[0]
    with pytest.raises(MissingHookError, match=rf"^{library} [\d.+a-z]+ has no \S+\.{hook.name}, which .*; install "):
        check_hooks(library)


def test_missing_module_fails_loudly(monkeypatch):
    import torch.utils

    import_module = importlib.import_module

    def without_dispatch(name):
        if name == "torch.utils._python_dispatch":
            raise ModuleNotFoundError(name)
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", without_dispatch)
    monkeypatch.delattr(torch.utils, "_python_dispatch")
    with pytest.raises(MissingHookError, match="no _python_dispatch.TorchDispatchMode, which"):
        check_hooks("torch")


def test_missing_attribute_of_an_instance_names_the_supported_versions():
    with pytest.raises(MissingHookError, match=r"has no Trainer._tr_loss, .*; install transformers[<>]"):
        check_hooks("transformers", object())
