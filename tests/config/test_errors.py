"""What others' errors say is put on one line."""

import pytest

from vit_jax.errors import first_line


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  \n two \n"), "two"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
    ],
)
def test_the_first_line_with_text_or_the_type_is_told(error, said):
    assert first_line(error) == said
