"""The one thread that computes."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

from ..protocol.answer import Failed
from ..protocol.failures import shutting_down
from .host import Host, Work

log = logging.getLogger("mlx_redrafter.server")

Command = Callable[[], None]
# Seconds without work after which whoever computes along may sleep.
REST_SECONDS = 2.0


@dataclass(frozen=True)
class Companions:
    """Those who compute along with the engine: the other ranks, where there are any.

    Attributes:
        rest: Called where nothing is left to do for a while.
        rouse: Called before the work goes on after that.
        leave: Called once the engine's work is over.
    """

    rest: Callable[[], None] = lambda: None
    rouse: Callable[[], None] = lambda: None
    leave: Callable[[], None] = lambda: None


class EngineThread:
    """Loads the models, then takes steps for as long as there is work.

    Others only put commands into its queue; it looks there before every step.

    Args:
        load: Makes a host for each model, in the thread: mlx's streams belong to threads.
        companions: Told, in the thread, when there is nothing to do and when there is again.

    Attributes:
        hosts: By name, once :meth:`start` has returned.
    """

    def __init__(
        self,
        load: Callable[[], Mapping[str, Host]],
        companions: Companions | None = None,
    ):
        self.hosts: Mapping[str, Host] = {}
        self._load, self._companions = load, companions or Companions()
        self._commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
        self._loaded = threading.Event()
        self._ending = threading.Lock()
        self._ended = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin, and wait until the models are loaded.

        Raises:
            Exception: What loading raised.
        """
        self._thread.start()
        self._loaded.wait()
        if self._error is not None:
            raise self._error

    @property
    def alive(self) -> bool:
        """Whether it takes work."""
        return self._thread.is_alive() and self._error is None

    def submit(self, host: Host, work: Work) -> None:
        """Let a request's answers wait for their turn."""
        with self._ending:
            if not self._ended:
                self._commands.put(lambda: host.submit(work))
                return
        work.deliver([Failed(work.jobs[0].index, shutting_down())])

    def cancel(self, host: Host, work: Work) -> None:
        """Forget a request, before the next step."""
        self._commands.put(lambda: host.cancel(work))

    def end(self) -> None:
        """End after the step under way; answers that still run are told so. Does not wait."""
        self._commands.put(None)

    def stop(self, seconds: float = 10.0) -> bool:
        """End, with whatever still runs; waits so long for the step under way.

        Returns:
            Whether the thread has ended.
        """
        self.end()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            self.hosts = self._load()
        except BaseException as error:
            self._error = error
            return
        finally:
            self._loaded.set()
        try:
            while self._take_commands():
                self._step()
        except BaseException as error:
            log.exception("the engine has ended")
            self._error = error
        finally:
            self._end()
            self._companions.leave()
            # mlx aborts the process at its exit where a thread that is gone has left streams.
            mx.synchronize()
            mx.clear_streams()

    def _step(self) -> None:
        """Take one step of each model that has anything to do."""
        for host in self.hosts.values():
            if host.busy:
                host.step(sum(other.running for other in self.hosts.values() if other is not host))

    def _take_commands(self) -> bool:
        """Do what was asked for; wait where there is nothing else to do. False: end."""
        wait = not any(host.busy for host in self.hosts.values())
        while True:
            try:
                command = self._awaited() if wait else self._commands.get_nowait()
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            wait = False

    def _awaited(self) -> Command | None:
        """The next command, however long it takes to come."""
        try:
            return self._commands.get(timeout=REST_SECONDS)
        except queue.Empty:
            self._companions.rest()
            command = self._commands.get()
            self._companions.rouse()
            return command

    def _end(self) -> None:
        with self._ending:
            self._ended = True
        while True:
            try:
                command = self._commands.get_nowait()
            except queue.Empty:
                break
            if command is not None:
                command()
        for host in self.hosts.values():
            host.fail_all(shutting_down())
