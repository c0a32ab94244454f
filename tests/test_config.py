"""Configuration: every setting from every place, and what is refused."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated

import pytest

from unspool.config import FORMS, candidates, load, read
from unspool.core.lane import Conduct
from unspool.core.lifecycle import Keeping
from unspool.core.schedule import Pace
from unspool.core.scheduler import ATTEMPTS_MAX
from unspool.errors import Misconfigured
from unspool.settings import DAY, SETTINGS, Says, Settings, accepts, commented, setting_of, shown
from unspool.spools.protocol import SKEW_MS, Survives


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "unspool.toml") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return name


# --- the table --------------------------------------------------------------------------------


def test_the_table_and_the_struct_are_one() -> None:
    assert list(SETTINGS) == list(Settings.__struct_fields__)
    assert load({}, {}).settings == Settings()


def test_every_default_is_one_that_could_have_been_written() -> None:
    for name, setting in SETTINGS.items():
        value = tomllib.loads(f"{name} = {shown(setting, setting.default)}")[name]
        assert read(setting, value, origin="here") == setting.default, name


def test_every_setting_says_what_it_is() -> None:
    for setting in SETTINGS.values():
        assert setting.text.endswith("."), setting.name
        assert setting.form in FORMS or setting.kind not in ("text", "list"), setting.name
        assert accepts(setting)
        assert (setting.unit == "ms") == setting.name.endswith("_ms")
        assert (setting.unit == "bytes") == setting.name.endswith("_bytes")


def test_the_defaults_are_those_of_the_core() -> None:
    s = Settings()
    assert Pace() == Pace(least_ms=s.backoff_least_ms, most_ms=s.backoff_most_ms)
    assert Keeping() == Keeping(
        answer_ms=s.answer_keep_ms, key_ms=s.key_keep_ms, answer_max_bytes=s.answer_max_bytes
    )
    assert Conduct() == Conduct(
        window_start=s.window_start, window_max=s.window_max, cohort_max=s.cohort_max
    )
    assert s.attempts_max == ATTEMPTS_MAX
    assert s.lease_ms >= 10 * SKEW_MS
    assert SETTINGS["survives"].choices == tuple(grade.name.lower() for grade in Survives)


def test_the_commented_file_is_a_file_of_the_defaults() -> None:
    lines = [line[1:] for line in commented().splitlines() if line[:1] == "#" and line[1:2] != " "]
    assert len(lines) == len(SETTINGS)
    name = written("\n".join(lines))
    effective = load({}, {}, config=name)
    assert effective.settings == Settings()
    assert set(effective.origins.values()) == {name}


# --- where a value comes from -----------------------------------------------------------------


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default() -> None:
    written("window_max = 10")
    everywhere = {"UNSPOOL_WINDOW_MAX": "11"}
    assert load({}, {}).origins["window_start"] == "default"
    for flags, environ, value, origin in (
        ({}, {}, 10, "unspool.toml"),
        ({}, everywhere, 11, "UNSPOOL_WINDOW_MAX"),
        ({"window_max": "12"}, everywhere, 12, "--window-max"),
        ({"window_max": None}, everywhere, 11, "UNSPOOL_WINDOW_MAX"),
        ({}, {"UNSPOOL_WINDOW_MAX": ""}, 10, "unspool.toml"),
    ):
        effective = load(flags, environ)
        assert effective.settings.window_max == value
        assert effective.origins["window_max"] == origin


def test_one_file_wins_and_nothing_is_merged(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    written("window_max = 30\nfields_max = 7", "xdg/unspool/config.toml")
    assert load({}, environ).settings.fields_max == 7
    written("window_max = 10")
    effective = load({}, environ)
    assert (effective.settings.window_max, effective.settings.fields_max) == (10, 100)
    assert effective.file == "unspool.toml"
    written("window_max = 11", "by-variable.toml")
    assert load({}, {**environ, "UNSPOOL_CONFIG": "by-variable.toml"}).settings.window_max == 11
    written("window_max = 12", "by-flag.toml")
    both = {**environ, "UNSPOOL_CONFIG": "by-variable.toml"}
    assert load({}, both, config="by-flag.toml").settings.window_max == 12


def test_where_a_file_may_be() -> None:
    assert [str(path) for path in candidates({"XDG_CONFIG_HOME": "/x", "HOME": "/h"})] == [
        "unspool.toml",
        "/x/unspool/config.toml",
        "/etc/unspool/unspool.toml",
    ]
    assert candidates({"HOME": "/h"})[1] == Path("/h/.config/unspool/config.toml")
    assert len(candidates({})) == 2


def test_lists_are_repeated_flags_texts_with_commas_or_lists_of_the_file() -> None:
    two = ("http://a:1", "http://b:2")
    assert load({"to": two}, {}).settings.to == two
    assert load({"to": ("http://a:1,http://b:2",)}, {}).settings.to == two
    assert load({}, {"UNSPOOL_TO": "http://a:1, http://b:2"}).settings.to == two
    written('to = ["http://a:1", "http://b:2"]')
    assert load({}, {}).settings.to == two
    written('to = "http://a:1"')
    assert load({}, {}).settings.to == two[:1]
    assert load({"scope_fields": ("",)}, {}).settings.scope_fields == ()


# --- what is refused --------------------------------------------------------------------------


def refusal(flags: dict[str, object], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(Misconfigured) as caught:
        load(flags, environ or {})
    return str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_name_and_its_file() -> None:
    written("windwo_max = 10")
    text = refusal({})
    assert "windwo_max in unspool.toml" in text
    assert "did you mean window_max?" in text
    written("window-max = 10")
    assert "did you mean window_max?" in refusal({})
    written("[custody]\nlifetime_ms = 5")
    assert "custody in unspool.toml is no setting: settings stand in no [table]" in refusal({})


def test_an_unknown_variable_is_refused_with_the_nearest_name() -> None:
    text = refusal({}, {"UNSPOOL_WINDOW_MAXX": "10"})
    assert "UNSPOOL_WINDOW_MAXX in the environment" in text
    assert "did you mean UNSPOOL_WINDOW_MAX?" in text
    assert "did you mean UNSPOOL_WORKERS?" in refusal({}, {"UNSPOOL_workers": "2"})
    assert "did you mean" not in refusal({}, {"UNSPOOL_HOME": "/opt"}), "all begin with UNSPOOL_"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UNSPOOL_DEBUG", "1"),
        ("UNSPOOL_SERVICE_HOST", "10.0.0.1"),
        ("UNSPOOL_SERVICE_PORT_HTTP", "8700"),
        ("UNSPOOL_PORT", "tcp://10.0.0.1:8700"),
        ("UNSPOOL_PORT_8700_TCP_ADDR", "10.0.0.1"),
        ("UNSPOOL_RELAY_PORT", "tcp://10.0.0.1:8700"),
        ("UNSPOOL_RELAY_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_variables_that_kubernetes_sets_for_a_service_called_unspool_are_not_ours(
    name: str, value: str
) -> None:
    assert load({}, {name: value}).settings == Settings()


def test_a_port_that_a_person_set_is_refused_like_any_other_mistake() -> None:
    assert "UNSPOOL_PORT in the environment" in refusal({}, {"UNSPOOL_PORT": "8700"})


def test_files_that_cannot_be_read_are_named() -> None:
    assert "UNSPOOL_CONFIG names nowhere.toml" in refusal({}, {"UNSPOOL_CONFIG": "nowhere.toml"})
    with pytest.raises(Misconfigured, match=r"--config names nowhere\.toml"):
        load({}, {}, config="nowhere.toml")
    written("window_max = ")
    assert "unspool.toml is not TOML" in refusal({})


def test_a_file_that_may_not_be_looked_at_is_not_passed_over() -> None:
    """It may set a limit. (A link to itself: as root there is no folder that one may not read.)"""
    Path("unspool.toml").symlink_to("unspool.toml")
    assert "unspool.toml cannot be read: " in refusal({})


def test_a_file_may_be_a_pipe() -> None:
    """`--config <(decrypt unspool.toml)`."""
    source, sink = os.pipe()
    os.write(sink, b"window_max = 9")
    os.close(sink)
    try:
        assert load({}, {}, config=f"/dev/fd/{source}").settings.window_max == 9
    finally:
        os.close(source)


@pytest.mark.parametrize(
    ("name", "raw", "value"),
    [
        ("lifetime_ms", "5d", 5 * DAY),
        ("lifetime_ms", "1.5h", 5_400_000),
        ("lifetime_ms", "500ms", 500),
        ("lifetime_ms", "90 s", 90_000),
        ("lifetime_ms", "1000", 1000),
        ("lifetime_ms", 1000, 1000),
        ("body_max_bytes", "1MiB", 2**20),
        ("body_max_bytes", "64kib", 2**16),
        ("body_max_bytes", "1MB", 10**6),
        ("body_max_bytes", "0", 0),
        ("cohort_max", "2.5", 2.5),
        ("cohort_max", 2, 2.0),
        ("repeat", "always", "always"),
        ("scope_fields", ["Authorization", "X-Tenant"], ("authorization", "x-tenant")),
        ("to", "HTTP://Example.ORG:8000/", ("http://example.org:8000",)),
        ("to", "https://[::1]", ("https://[::1]",)),
        ("listen", "unix:/run/a.sock", ("unix:/run/a.sock",)),
        ("listen", "[::1]:0", ("[::1]:0",)),
        ("listen", "systemd", ("systemd",)),
        ("listen", ":8700", (":8700",)),
    ],
)
def test_values_are_read(name: str, raw: object, value: object) -> None:
    assert read(SETTINGS[name], raw, origin="here") == value


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("window_max", "lots", "give a whole number"),
        ("window_max", True, "give a whole number"),
        ("window_max", 1.5, "give a whole number"),
        ("window_max", "0", "give at least 1"),
        ("window_max", "-1", "give at least 1"),
        ("body_max_bytes", "-1KiB", "give at least 0"),
        ("window_max", "20s", "give a whole number"),
        ("workers", "257", "give at most 256"),
        ("lifetime_ms", "5 days", "30s, 5m or 5d"),
        ("lifetime_ms", "0.5ms", "30s, 5m or 5d"),
        ("lifetime_ms", "5MiB", "30s, 5m or 5d"),
        ("lifetime_ms", "9" * 400, "give at most 9007199254740991"),
        ("body_max_bytes", "1M", "64KiB or 1MiB"),
        ("cohort_max", "nan", "give at most 1000"),
        ("cohort_max", "many", "give a number"),
        ("survives", "powr", "did you mean power?"),
        ("log_level", "loud", "give one of debug, info, warning, error"),
        ("to", "127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("to", "localhost", "http://127.0.0.1:8000"),
        ("to", "ftp://a", "give http:// or https://"),
        ("to", "http://a/path", "leave out path and query"),
        ("to", "http://a?q=1", "leave out path and query"),
        ("to", "http://a#f", "leave out path and query"),
        ("to", "http://a:99999", "give a port"),
        ("to", "http://a:0", "a port from 1"),
        ("to", "http://[::1", "in brackets: http://[::1]:8000"),
        ("to", "http://::1:8000", "in brackets: http://[::1]:8000"),
        ("to", 8000, "give a list"),
        ("listen", "8700", "give host:port"),
        ("listen", "a:70000", "give host:port"),
        ("listen", "unix:", "give host:port"),
        ("spool", "unspool.db", "sqlite:///unspool.db"),
        ("scope_fields", "a b", "names of HTTP fields"),
        ("via_name", "two words", "give one word"),
        ("tls_cert", 1, "give a text"),
    ],
)
def test_bad_values_say_value_setting_place_and_what_would_do(
    name: str, raw: object, says: str
) -> None:
    with pytest.raises(Misconfigured) as caught:
        read(SETTINGS[name], raw, origin="the place")
    text = str(caught.value)
    assert text.startswith(f"{name} = {raw}")
    assert "(the place)" in text
    assert says in text


def test_a_password_in_a_url_is_not_repeated() -> None:
    text = refusal({"to": ("http://user:hunter2@a",)})
    assert "hunter2" not in text
    assert "leave out user and password" in text
    spool = load({"spool": ("redis://:hunter2@a/0",)}, {}).settings.spool
    assert "hunter2" not in shown(SETTINGS["spool"], spool)
    assert '"redis://:...@a/0"' in shown(SETTINGS["spool"], spool)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"spool": ("sqlite:///a", "sqlite:///a")}, "spool names sqlite:///a twice"),
        ({"lease_ms": "75s"}, 'lease_ms = "75s" is too short'),
        ({"total_ms": "80s"}, 'lease_ms = "90s" is too short: a lease'),
        ({"window_start": "21"}, "window_start = 21 is more than window_max = 20"),
        ({"backoff_least_ms": "2h"}, "backoff_least_ms"),
        ({"answer_keep_ms": "31d"}, 'more than key_keep_ms = "30d"'),
        ({"tls_cert": "a.pem"}, "tls_cert is set and tls_key is not"),
        ({"tls_key": "a.pem"}, "tls_key is set and tls_cert is not"),
        ({"listen": ("",)}, "listen is empty"),
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    flags: dict[str, object], says: str
) -> None:
    assert says in refusal(flags)


def test_a_lease_just_long_enough_is_taken() -> None:
    assert load({"lease_ms": "75001ms"}, {}).settings.lease_ms == 75_001


def test_a_switch_is_read_though_no_setting_is_one_yet() -> None:
    switch = setting_of("bright", Annotated[bool, Says("Where", "Is it bright?")], False)
    assert switch.kind == "switch"
    assert read(switch, "yes", origin="here") is True
    assert read(switch, False, origin="here") is False
    with pytest.raises(Misconfigured, match="true or false"):
        read(switch, 1, origin="here")
