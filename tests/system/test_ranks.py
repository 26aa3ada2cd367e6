"""What ranks say to each other."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_redrafter.errors import RedrafterError
from mlx_redrafter.system.ranks import Ranks


class Second:
    """A rank that is not the first one of two, as far as it is known before an exchange."""

    def rank(self) -> int:
        return 1

    def size(self) -> int:
        return 2


@pytest.mark.parametrize("data", ["text", 7, None, [1], memoryview(b"text")])
def test_what_is_no_bytes_is_refused_before_it_is_shared(data: Any) -> None:
    ranks = Ranks(mx.distributed.init())
    with pytest.raises(RedrafterError, match=r"^data has to be bytes, such as text\.encode\(\), a"):
        ranks.share(data)
    assert ranks.progress == 0, "nothing was exchanged"


def test_the_other_ranks_are_told_as_well() -> None:
    """A script that shares text has the same mistake on all of them."""
    second: Any = Second()
    with pytest.raises(RedrafterError, match=r"^data has to be bytes"):
        Ranks(second).share("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"text", bytearray(b"text"), b"long " * 100])
def test_bytes_are_shared_as_they_are(data: bytes) -> None:
    assert Ranks(mx.distributed.init()).share(data) == data
