"""The base of every layer that has parameters."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.errors import ScopeParamShapeError


class Module(nn.Module):
    """A Linen module that reads an existing parameter without tracing its initial value.

    Linen traces it whenever a model is applied, to compare shapes: two fifths of the time to trace a ViT.
    """

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **init_kwargs: Any) -> Any:
        """The parameter `name`; `init_args` are its shape and dtype.

        Raises:
            ScopeParamShapeError: the existing one has another shape.
        """
        if not self.has_variable("params", name):
            return super().param(name, init_fn, *init_args, **init_kwargs)
        value, (shape, _) = self.get_variable("params", name), init_args
        if value.shape != shape:
            raise ScopeParamShapeError(name, "/".join(self.path), value.shape, shape)
        return value
