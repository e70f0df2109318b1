"""Training mode without the random numbers of dropout: two networks of other widths would draw others."""

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

ALONE: set[Any] = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
ALONE |= {torch.dropout, torch.dropout_, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout}
# Functions that have dropout inside, and at which place they are given its probability.
WITHIN: dict[Any, int] = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}


class WithoutDropout(TorchFunctionMode):
    """Dropout does nothing for a while; other random numbers, such as those of stochastic depth, are drawn as ever."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in ALONE:
            return args[0] if args else kwargs["input"]
        if function in WITHIN:
            place = WITHIN[function]
            if len(args) > place:
                args = (*args[:place], 0.0, *args[place + 1 :])
            else:
                kwargs = {**kwargs, "dropout_p": 0.0}
        return function(*args, **kwargs)
