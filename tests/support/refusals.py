"""What a user is told where something is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlx_redrafter.errors import RedrafterError


def refusal(action: Callable[[], Any]) -> str:
    """The sentence of the RedrafterError that the action raises."""
    with pytest.raises(RedrafterError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert message.strip()
    return message
