"""Train state, step, loop, checkpoints, logs, sharding."""

from typing import TYPE_CHECKING

from dynexit._lazy import attach

if TYPE_CHECKING:
    from dynexit.training.checkpointing.checkpoints import restore_params as restore_params
    from dynexit.training.loop import Fitted as Fitted
    from dynexit.training.loop import NonFiniteLoss as NonFiniteLoss
    from dynexit.training.loop import fit as fit
    from dynexit.training.optimizer import learning_rate as learning_rate
    from dynexit.training.optimizer import make_optimizer as make_optimizer
    from dynexit.training.parallel.mesh import make_mesh as make_mesh
    from dynexit.training.parallel.placement import put_batch as put_batch
    from dynexit.training.parallel.placement import whole as whole
    from dynexit.training.parallel.rules import TENSOR_PARALLEL as TENSOR_PARALLEL
    from dynexit.training.state import TrainState as TrainState
    from dynexit.training.state import create_state as create_state
    from dynexit.training.step import make_train_step as make_train_step

__getattr__, __dir__ = attach(__name__)
