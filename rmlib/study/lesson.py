"""The check of an answer in an exercise; students import it, so it needs nothing else."""

from collections.abc import Callable

PASSED, BLANK, NOT_YET = "passed", "your turn", "not yet"


class YourTurn(Exception):
    """An answer is still blank."""


def check(task: str, judge: Callable, *answers) -> None:
    """Print one line about a task: passed, the hint, or that it is still the student's turn.

    Args:
        judge: takes the answers; an assertion that fails is the hint, what it returns the reason.
        answers: values and functions of the student; one that is ``...`` or gives it is blank.
    """
    try:
        line = f"{PASSED}. {judge(*map(_answered, answers)) or ''}"
    except YourTurn:
        line = f"{BLANK}: replace the ... above, and run both cells"
    except AssertionError as hint:
        line = f"{NOT_YET}. {hint or 'an assertion of yours failed'}"
    except Exception as error:  # whatever the student wrote
        line = f"{NOT_YET}. It stops with {type(error).__name__}: {error}"
    print(f"{task}: {' '.join(line.split())}")


def in_percent(*values) -> None:
    """The hint for a share where percent is asked."""
    for value in values:
        assert not 0 < value < 1, f"In percent, please: {100 * value:g} rather than {value:g}."


def _answered(answer):
    """An answer that is no blank; a function is asked when it is called."""
    if answer is ...:
        raise YourTurn
    return (lambda *given: _answered(answer(*given))) if callable(answer) else answer
