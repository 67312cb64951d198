"""Every rule of the configuration, with the sentence a user gets; TOML files; presets."""

import pytest

from systolora.config import PRESETS, AcceleratorConfig, ConfigError, from_toml, preset

BROKEN = [
    ({"rows": 6}, "rows = 6: must be a power of two from 4 to 256"),
    ({"rows": 2}, "rows = 2: must be a power of two from 4 to 256"),
    ({"cols": 512}, "cols = 512: must be a power of two from 4 to 256"),
    ({"cols": -8}, "cols = -8: must be a power of two from 4 to 256"),
    ({"rows": 8.0}, "rows = 8.0: must be an integer"),
    ({"rows": True}, "rows = True: must be an integer"),
    ({"segments": "4"}, "segments = '4': must be an integer"),
    ({"segments": 3}, "segments = 3: must be one of 1, 2, 4, 8"),
    (
        {"rows": 4, "segments": 8},
        "segments = 8: must be at most min(rows, cols) = 4",
    ),
    ({"int16": 1}, "int16 = 1: must be true or false"),
    ({"fused_quantize": "no"}, "fused_quantize = 'no': must be true or false"),
    (
        {"acc_depth": 100},
        "acc_depth = 100: must be a power of two from 4 * rows = 64 to 65536",
    ),
    (
        {"rows": 64, "acc_depth": 64},
        "acc_depth = 64: must be a power of two from 4 * rows = 256 to 65536",
    ),
    (
        {"acc_depth": 1 << 17},
        "acc_depth = 131072: must be a power of two from 4 * rows = 64 to 65536",
    ),
    ({"bus_bits": 2048}, "bus_bits = 2048: must be one of 64, 128, 256, 512, 1024"),
    ({"channels": 3}, "channels = 3: must be one of 1, 2, 4"),
    ({"channels": 0}, "channels = 0: must be one of 1, 2, 4"),
    ({"channels": 8}, "channels = 8: must be one of 1, 2, 4"),
    ({"channels": True}, "channels = True: must be an integer"),
    ({"channels": "2"}, "channels = '2': must be an integer"),
    (
        {"bus_bits": 1024, "channels": 4},
        "channels = 4: channels * bus_bits = 4096: must be at most 2048",
    ),
    (
        {"bus_bits": 1024, "channels": 2, "act_bytes": 2048},
        "act_bytes = 2048: must be a power of two from 4096 to 67108864",
    ),
]


@pytest.mark.parametrize(("fields", "message"), BROKEN, ids=[m for _, m in BROKEN])
def test_rules(fields, message):
    with pytest.raises(ConfigError) as error:
        AcceleratorConfig(**fields)
    assert str(error.value) == message


def test_derived_widths():
    wide = AcceleratorConfig(rows=8, cols=32, segments=4, int16=True, acc_depth=64)
    assert (wide.operand_bits, wide.acc_bits, wide.result_bits) == (9, 48, 16)
    assert (wide.top_load, wide.left_load, wide.lanes, wide.bank_depth) == (2, 8, 32, 16)
    narrow = wide.with_fields(int16=False, rows=None)
    assert (narrow.operand_bits, narrow.acc_bits, narrow.result_bits) == (8, 32, 8)
    assert narrow.rows == 8 and narrow.digest != wide.digest


def test_the_digest_of_older_configurations():
    """A flag that did not exist when they were generated, compiled or measured changes nothing."""
    assert preset("default").digest == "7f7087da4657"
    assert preset("default").with_fields(fused_quantize=True).digest != "7f7087da4657"
    assert preset("paper").with_fields(fused_quantize=False).digest == "ce0fc1bd5401"


def test_channels():
    """Beats are as wide as all channels, and so are the buffers' entries."""
    config = AcceleratorConfig(bus_bits=256, channels=4)
    assert (config.bus_bytes, config.beat_bits, config.beat_bytes) == (32, 1024, 128)
    one = config.with_fields(bus_bits=1024, channels=1)
    assert (one.bus_bytes, one.beat_bytes) == (128, 128) and one.digest != config.digest
    for name in ("act_entry_bytes", "wgt_entry_bytes", "act_entries", "stream_beats"):
        assert getattr(one, name) == getattr(config, name)


def test_presets():
    assert list(PRESETS) == ["tiny", "ecp5", "default", "paper"]
    shapes = {name: (c.rows, c.cols, c.segments, c.int16) for name, c in PRESETS.items()}
    assert shapes == {
        "tiny": (4, 4, 1, True),
        "ecp5": (8, 8, 2, True),
        "default": (16, 16, 4, True),
        "paper": (64, 64, 4, True),
    }
    assert preset("default") == AcceleratorConfig()
    with pytest.raises(ConfigError, match="preset = 'big': must be one of tiny, ecp5, default"):
        preset("big")


def test_toml(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('preset = "ecp5"\nrows = 16\nint16 = false\n')
    assert from_toml(file) == preset("ecp5").with_fields(rows=16, int16=False)
    file.write_text("")
    assert from_toml(file) == preset("default")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colums = 4", "colums"),
        ("rows = 5", "rows = 5: must be a power of two"),
        ('rows = "8"', "rows = '8': must be an integer"),
        ("rows = [4]", "rows"),
        ("preset = 3", "preset"),
        ("preset = ['tiny']", "preset"),
        ("[array]\nrows = 4", "array"),
        ("rows = ", "TOML"),
    ],
)
def test_toml_errors(tmp_path, text, message):
    """The message names the file, then what is wrong, on one line."""
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        from_toml(file)
    assert str(error.value).startswith(f"{file}: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_toml_that_cannot_be_read(tmp_path):
    for path, content in ((tmp_path / "none.toml", None), (tmp_path / "binary.toml", b"\xff\x00")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError, match=str(path)):
            from_toml(path)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        from_toml(tmp_path)
