"""Optional packages are imported on use, and their absence is explained."""

from __future__ import annotations

import sys

import pytest

from nrd_trt.errors import MissingDependencyError
from nrd_trt.optional import require


def test_require_returns_the_module() -> None:
    assert require("json", extra="none", purpose="testing") is sys.modules["json"]


@pytest.mark.parametrize(("module", "hint"), [("tensorrt", "comes with JetPack"), ("no_such_package", "")])
def test_require_names_feature_package_and_remedy(module: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"^building needs the package '{module}'") as caught:
        require(module, extra="some", purpose="building")
    assert "pip install 'nrd-trt[some]'" in str(caught.value)
    assert hint in str(caught.value)
