"""Floor 3: train state, step, loop, checkpoints, logs, sharding."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.training.checkpoints import restore_params
    from dynexit.training.loop import Fitted, NonFiniteLoss, fit
    from dynexit.training.optimizer import learning_rate, make_optimizer
    from dynexit.training.sharding import data_mesh, put_batch
    from dynexit.training.state import TrainState, create_state
    from dynexit.training.step import make_train_step

__all__ = [
    "Fitted",
    "NonFiniteLoss",
    "TrainState",
    "create_state",
    "data_mesh",
    "fit",
    "learning_rate",
    "make_optimizer",
    "make_train_step",
    "put_batch",
    "restore_params",
]
__getattr__, __dir__ = attach(
    __name__,
    {
        "Fitted": "loop",
        "NonFiniteLoss": "loop",
        "TrainState": "state",
        "create_state": "state",
        "data_mesh": "sharding",
        "fit": "loop",
        "learning_rate": "optimizer",
        "make_optimizer": "optimizer",
        "make_train_step": "step",
        "put_batch": "sharding",
        "restore_params": "checkpoints",
    },
)
