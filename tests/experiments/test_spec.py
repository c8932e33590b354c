"""Suites: what ships, and what is refused."""

from pathlib import Path

import pytest

from equiscale.errors import SettingError
from equiscale.experiments.spec import checked_file_name, list_suites, load_suite, make_protocol
from equiscale.models import list_models

SOURCED = {  # checked against a source document: SESN, in the order of the columns
    "SESN scalar": [(1.95, 0.17), (1.98, 0.14), (1.68, 0.12), (1.67, 0.18)],
    "SESN vector": [(2.00, 0.20), (2.00, 0.21), (1.66, 0.17), (1.59, 0.16)],
}


@pytest.mark.parametrize("name", list_suites())
def test_every_suite_names_existing_models(name: str) -> None:
    suite = load_suite(name)
    assert suite.name == name
    assert set(suite.models) <= set(list_models())


def test_the_published_protocol() -> None:
    protocol = load_suite("mnist-scale").protocol
    assert (protocol.epochs, protocol.batch_size, protocol.learning_rate) == (60, 128, 0.01)
    assert (protocol.lr_steps, protocol.lr_gamma, protocol.augment_range) == ((20, 40), 0.1, (0.5, 2.0))


def test_the_published_protocol_of_natural_images() -> None:
    suite = load_suite("stl10")
    protocol = suite.protocol
    assert (protocol.epochs, protocol.batch_size, protocol.learning_rate) == (1000, 128, 0.1)
    assert (protocol.lr_steps, protocol.lr_gamma) == ((300, 400, 600, 800), 0.2)
    assert (protocol.optimizer, protocol.momentum, protocol.nesterov) == ("sgd", 0.9, True)
    assert (protocol.weight_decay, protocol.select) == (5e-4, "last")
    assert suite.augmentations == ("crop-flip-cutout",)
    claims = {method.name: method.cells["STL-10"].claim for method in suite.methods}
    assert {name: claim.mean for name, claim in claims.items()} == {
        "WRN": 11.48,
        "SiCNN": 11.62,
        "SI-ConvNet": 12.48,
        "DSS": 11.28,
        "SS-CNN": 25.47,
        "SESN-A": 10.83,
        "SESN-B": 8.51,
        "SESN-C": 14.08,
        "DISCO": 8.07,
    }
    assert not any(claim.checked for claim in claims.values())


def test_loose_settings_are_checked_as_a_whole() -> None:
    with pytest.raises(SettingError, match=r"expected a valid protocol, got epochs: .*; learning_rate: "):
        make_protocol(epochs=0, batch_size=8, learning_rate=-1.0, lr_steps=(), lr_gamma=0.1)


def test_checked_claims_are_preferred_and_unchecked_ones_are_marked() -> None:
    suite = load_suite("mnist-scale")
    for method in suite.methods:
        claims = [cell.claim for cell in method.cells.values() if cell.claim]
        if method.name in SOURCED:
            assert [(claim.mean, claim.std) for claim in claims] == SOURCED[method.name]
            assert all(claim.checked for claim in claims)
        else:
            assert not any(claim.checked for claim in claims)


def test_the_plus_columns_take_the_second_configuration() -> None:
    cells = next(m for m in load_suite("mnist-scale").methods if m.name == "SESN scalar").cells
    assert {column: (cell.model, cell.augment) for column, cell in cells.items()} == {
        "28×28": ("mnist_ses_scalar_28", "none"),
        "28×28 +": ("mnist_ses_scalar_28p", "scale"),
        "56×56": ("mnist_ses_scalar_56", "none"),
        "56×56 +": ("mnist_ses_scalar_56p", "scale"),
    }


def test_a_cut_schedule_keeps_its_proportions() -> None:
    cut = load_suite("mnist-scale").protocol.cut(30)
    assert (cut.epochs, cut.lr_steps) == (30, (10, 20))
    with pytest.raises(SettingError, match="at least one epoch, got 0"):
        cut.cut(0)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 3", "epochs = 3\nseed = -1", "protocol.seed: Input should be greater than or equal to 0"),
        ("epochs = 3", "epochs = 0", "greater than or equal to 1"),
        (
            "epochs = 3",
            "epoch = 3",
            "protocol.epochs: Field required; protocol.epoch: Extra inputs are not permitted",
        ),
        ('"28×28" = {', '"32×32" = {', "unknown column '32×32'"),
        ('augment = "none"', 'augment = "flip"', "Input should be 'none', 'scale' or 'crop-flip-cutout'"),
        ('name = "small"', "name = ", "Invalid value"),
        ('name = "small"', 'name = "../small"', "String should match pattern"),
        (
            'model = "mnist',
            'model = "../mnist',
            "model: Value error, a name must be printable, more than dots",
        ),
        (
            "epochs = 3",
            "epochs = 2147483648",
            "protocol.epochs: Input should be less than or equal to 2147483647",
        ),
        ("hidden = 16", "hidden = 2147483648", "hidden must be at most 2147483647 in size, got more"),
        ("hidden = 16", "hidden = [1, -2147483648]", "hidden must be at most 2147483647 in size, got more"),
        ("lr_steps = [2]", "lr_steps = [2, 1]", "lr_steps must increase"),
        ("lr_steps = [2]", "lr_steps = [2]\naugment_range = [2.0, 1.0]", "0 < low <= high"),
        (
            "batch_size = 250",
            "batch_size = 250\naccumulate = 4",
            "accumulate must divide batch_size, got 4 and 250",
        ),
        (
            "lr_gamma = 0.1",
            'lr_gamma = 0.1\noptimizer = "sgd"\nmomentum = 0.0',
            "nesterov needs a positive momentum",
        ),
        ("lr_gamma = 0.1", "lr_gamma = 0.1\nema_decay = 1.0", "less than 1"),
        (
            'augment = "none"',
            'augment = "none", claims = [{ mean = 1.0, source = "x", checked = true }]',
            "names no known source",
        ),
    ],
)
def test_invalid_suites_are_refused(small_suite: Path, old: str, new: str, message: str) -> None:
    small_suite.write_text(small_suite.read_text().replace(old, new))
    with pytest.raises(SettingError, match=r"expected a valid suite in .*small\.toml") as caught:
        load_suite(str(small_suite))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("epochs = 3", "epochs = {}"),
        ("batch_size = 250", "batch_size = {}"),
        ("lr_steps = [2]", "lr_steps = [{}]"),
        ("epochs = 3", "epochs = 3\nseed = {}"),
        ("epochs = 3", "epochs = 3\naccumulate = {}"),
        ("epochs = 3", "epochs = 3\ntest_every = {}"),
        ("learning_rate = 0.01", "learning_rate = {}"),
        ("realisations = [0, 1]", "realisations = [0, {}]"),
        ("realisations = [0, 1]", "realisations = [-{}]"),
        ("hidden = 16", "hidden = {}"),
        ("[4, 8, 8]", "[4, 8, {}]"),
        (
            "[protocol]",
            '[citation]\ntitle = "t"\nauthors = "a"\nvenue = "v"\nyear = {}\n\n[protocol]',
        ),
    ],
)
def test_numbers_that_no_text_can_show_are_refused(small_suite: Path, old: str, new: str) -> None:
    """TOML reads 5000 hexadecimal digits, and Python writes at most 4300 decimal ones."""
    text = small_suite.read_text()
    assert old in text
    small_suite.write_text(text.replace(old, new.format("5")))
    load_suite(str(small_suite))  # the control: a small number is fine there
    digits = "9" * 4000 if "-{" in new else "0x" + "f" * 5000  # hexadecimal ones have no sign
    small_suite.write_text(text.replace(old, new.format(digits)))
    with pytest.raises(SettingError, match=r"expected a valid suite in .*: [\w.]") as caught:
        load_suite(str(small_suite))
    assert len(str(caught.value)) < 500


def test_the_largest_numbers_are_accepted(small_suite: Path) -> None:
    text = small_suite.read_text().replace("epochs = 3", f"epochs = 2147483647\nseed = {2**63 - 1}")
    small_suite.write_text(text.replace("[0, 1]", "[2147483647]").replace("16", "2147483647"))
    suite = load_suite(str(small_suite))
    assert (suite.protocol.epochs, suite.protocol.seed) == (2**31 - 1, 2**63 - 1)
    assert suite.realisations == (2**31 - 1,)
    assert ("hidden", 2**31 - 1) in suite.cells[0].overrides


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "c:a", "a\0b", "a\nb", "/etc"])
def test_what_begins_the_name_of_a_file_stays_in_its_folder(name: str) -> None:
    with pytest.raises(ValueError, match="a name must be printable, more than dots, and without /"):
        checked_file_name(name)


def test_thousands_of_problems_are_counted_and_not_told(small_suite: Path) -> None:
    text = small_suite.read_text()
    small_suite.write_text(text.replace("[0, 1]", "[" + '"x",' * 1001 + "]"))
    with pytest.raises(SettingError, match=r"small.toml, got: 1001 problems$"):
        load_suite(str(small_suite))
    small_suite.write_text(text.replace("[0, 1]", "[" + '"x",' * 1000 + "]"))
    with pytest.raises(SettingError, match=r"got: realisations.0: Input .*; and 980 more$"):
        load_suite(str(small_suite))


def test_of_a_list_of_the_protocol_the_first_problem_is_told(small_suite: Path) -> None:
    small_suite.write_text(
        small_suite.read_text().replace("lr_steps = [2]", "lr_steps = [1, 0, 0]\nseed = -1")
    )
    with pytest.raises(SettingError, match=r"got: protocol.lr_steps.1: .*; protocol.seed: [^;]*$"):
        load_suite(str(small_suite))


def test_unknown_suites_list_what_exists(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match=r"expected a suite of digits-scale, .*mnist-scale.* or .* got 'mnist'"
    ):
        load_suite("mnist")
    with pytest.raises(SettingError, match="expected a readable suite"):
        load_suite(str(tmp_path / "none.toml"))
