"""The naive half of all faults: the cache that lies, also while Redis is out of reach."""

import signal

from tests.consistency.chaos.scene import Fault, Scene
from tests.consistency.stack import pause


def trouble(scene: Scene) -> None:
    """Cuts one process off from Redis, stops Redis, and stops a process, each for a moment."""
    kind = scene.faults % 3
    if kind == 0:
        scene.proxy.cut()
        pause(0.5)
        scene.proxy.mend()
    elif kind == 1:
        scene.servers.redis.stop()
        pause(0.2)
        scene.servers.redis.cont()
    else:
        service = scene.chance.choice(scene.stack.services)
        service.send(signal.SIGSTOP)
        pause(0.3)
        service.send(signal.SIGCONT)
    pause(0.3)


TROUBLE = Fault("naive", "cut off, redis stopped, process stopped", trouble, ends_processes=True)
