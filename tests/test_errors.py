import builtins
import inspect

import pytest

from equiscale import errors

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass)]


def test_there_are_errors() -> None:
    assert len(ALL) > 10


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_every_error_is_ours_documented_and_also_a_standard_one(cls: type[Exception]) -> None:
    assert issubclass(cls, errors.EquiscaleError)
    assert cls.__doc__
    assert cls.__doc__.endswith(".")
    if cls is not errors.EquiscaleError:
        standard = [base for base in cls.__mro__ if base.__name__ in dir(builtins)]
        assert len(standard) > 3, "code that catches ValueError or RuntimeError must keep working"


def test_a_checksum_error_is_a_data_error() -> None:
    assert issubclass(errors.ChecksumError, errors.DataError)


def test_a_lost_process_is_no_failure_of_the_training_itself() -> None:
    assert not issubclass(errors.LostProcessError, errors.TrainingError | errors.TrainingStoppedError)
