"""The window between two log lines: its clocks count steps alone, and survive a checkpoint."""

import threading
import time

import torch
from trainings import metrics, run

from utils.training.step_window import Window

CPU = torch.device("cpu")


def work(seconds: float) -> None:
    """Use the processor for so many seconds of this thread's own time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_processor_seconds_are_those_of_all_threads_during_the_steps():
    window = Window(CPU)
    work(0.1)  # between two steps: not counted
    window.begin()
    other = threading.Thread(target=work, args=(0.1,))
    other.start()
    work(0.1)
    other.join()
    time.sleep(0.1)  # costs no processor time
    window.end()
    assert 0.2 <= window.processor_seconds < 0.29
    window.reset()
    assert window.processor_seconds == 0


def test_a_window_goes_on_where_a_checkpoint_left_it():
    window, continued = Window(CPU), Window(CPU)
    window.begin()
    work(0.02)
    window.end()
    continued.load(window.state())
    assert continued.processor_seconds == window.processor_seconds > 0


def test_a_window_of_an_older_checkpoint_starts_without_processor_seconds():
    state = Window(CPU).state()
    del state["processor_seconds"]
    window = Window(CPU)
    window.load(state)
    assert window.processor_seconds == 0


def test_every_log_line_states_the_processor_seconds_of_its_steps(faces, tmp_path):
    before = time.process_time()
    lines = metrics(run(faces, tmp_path / "run"), without=())
    spent = time.process_time() - before
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert all(line["cpu_s"] > 0 for line in lines)
    assert sum(line["cpu_s"] for line in lines) < spent
