import dataclasses
import re
import threading
from collections.abc import Callable
from importlib import metadata

import pytest
from hypothesis import given, settings, strategies as st

import parafix.core
from parafix.core import (
    AmbiguousComponentError,
    Component,
    ComponentImportError,
    Demo,
    MissingFrameworkError,
    UnknownComponentError,
)
from parafix.core._component import bibtex_key
from parafix.core._discovery import discover
from parafix.core._known import KNOWN, KNOWN_DEMOS
from parafix.core._registry import Registry


BIBTEX = "@article{someone2000, title = {On {Nothing}}, year = {2000}}"

HEALTHY = """
from parafix.core import Component, hookimpl

@hookimpl
def parafix_scans():
    yield Component("scan", "healthy", "jax", "healthy._target:Thing")
"""


def names_of(distribution: str) -> set[str]:
    return {
        item.name
        for item in parafix.core.components()
        if item.distribution == distribution
    }


def failures_of(distribution: str) -> list[str]:
    return [
        failure.reason
        for failure in parafix.core.failures()
        if failure.distribution == distribution
    ]


def message_of(kind, name, backend, error=UnknownComponentError) -> str:
    with pytest.raises(error) as caught:
        parafix.core.get(kind, name, backend=backend)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestComponent:
    @pytest.mark.parametrize(
        ("field", "value", "error", "words"),
        [
            ("kind", "solver", ValueError, "'rootfinder', 'scan', 'adjoint'"),
            ("backend", "numpy", ValueError, "'jax', 'torch'"),
            ("name", "", ValueError, "lower-case"),
            ("name", "Deer", ValueError, "lower-case"),
            ("name", "a:b", ValueError, "lower-case"),
            ("name", "deer-", ValueError, "lower-case"),
            ("name", None, TypeError, "name must be a string"),
            ("target", "package.module", ValueError, "package.module:Attribute"),
            ("target", "package.module:", ValueError, "package.module:Attribute"),
            ("target", ":Attribute", ValueError, "package.module:Attribute"),
            ("target", "a-b:Attribute", ValueError, "package.module:Attribute"),
            ("target", int, TypeError, "target must be a string"),
            ("summary", "two\nlines", ValueError, "single line"),
            ("summary", None, TypeError, "summary must be a string"),
            ("aliases", "deer", TypeError, "tuple of strings"),
            ("aliases", (1,), TypeError, "tuple of strings"),
            ("aliases", None, TypeError, "tuple of strings"),
            ("aliases", ("Wrong",), ValueError, "alias must be lower-case"),
            ("aliases", ("thing",), ValueError, "must differ"),
            ("aliases", ("other", "other"), ValueError, "must differ"),
            ("cite", BIBTEX, TypeError, "tuple of strings"),
            ("cite", ("someone2000",), ValueError, "BibTeX"),
            ("cite", (BIBTEX[:-1],), ValueError, "BibTeX"),
        ],
    )
    def test_bad_field(self, field, value, error, words):
        fields = {
            "kind": "scan",
            "name": "thing",
            "backend": "jax",
            "target": "a.b:C",
            field: value,
        }
        with pytest.raises(error, match=re.escape(words)):
            Component(**fields)

    def test_lists_become_tuples(self):
        component = Component(
            "scan", "thing", "jax", "a:B.c", aliases=["one", "other_one"], cite=[BIBTEX]
        )
        assert component.aliases == ("one", "other_one")
        assert component.cite == (BIBTEX,)
        assert component.names == ("thing", "one", "other_one")
        assert hash(component) == hash(dataclasses.replace(component))

    def test_frozen(self):
        component = Component("scan", "thing", "jax", "a:B")
        with pytest.raises(dataclasses.FrozenInstanceError):
            component.name = "other"

    @pytest.mark.parametrize(
        ("fields", "error"),
        [
            (("Wrong", "a:b", ""), ValueError),
            (("demo", "a.b", ""), ValueError),
            (("demo", "a:b", None), TypeError),
            (("demo", "a:b", "two\nlines"), ValueError),
        ],
    )
    def test_bad_demo(self, fields, error):
        with pytest.raises(error):
            Demo(*fields)

    @given(st.from_regex(r"[a-z0-9]{1,5}([-_][a-z0-9]{1,5}){0,3}", fullmatch=True))
    @settings(deadline=None)
    def test_good_names(self, name):
        assert Component("scan", name, "jax", "a:B").name == name

    @given(st.text(max_size=6))
    @settings(deadline=None)
    def test_names_never_hold_separators(self, name):
        # A name with a colon, a comma or a space could not be asked for.
        try:
            Component("scan", name, "jax", "a:B")
        except ValueError:
            return
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789-_")

    def test_bibtex_key(self):
        assert bibtex_key(BIBTEX) == "someone2000"
        assert bibtex_key("\n@Misc { a:b-c ,\n title={x}\n}\n") == "a:b-c"


class TestDiscovery:
    def test_third_party(self, site):
        package = site.add_component(
            "Wonder.Works", "wonder", options="aliases=('marvel',), summary='one line'"
        )
        (found,) = (
            item
            for item in parafix.core.components("rootfinder", "jax")
            if item.name == "wonder"
        )
        assert found.distribution == "wonder-works"
        assert found.summary == "one line"
        for name in ("wonder", "marvel", "wonder-works:wonder", "Wonder_Works:marvel"):
            target = parafix.core.get("rootfinder", name, backend="jax")
            assert target.__module__ == f"{package}._target"
            assert target.__name__ == "Thing"
        assert parafix.core.failures() == ()

    def test_loads_on_first_need_only(self, site, registry):
        import sys

        package = site.add_component("wonder", "wonder")
        undo = parafix.core.register(Component("scan", "mine", "jax", "a:B"))
        undo()
        assert f"{package}._plugin" not in sys.modules
        parafix.core.components()
        assert f"{package}._plugin" in sys.modules
        assert f"{package}._target" not in sys.modules
        parafix.core.get("rootfinder", "wonder", backend="jax")
        assert f"{package}._target" in sys.modules

    def test_discovers_once(self, site, monkeypatch):
        calls = []
        monkeypatch.setattr(
            "parafix.core._registry.discover", lambda: calls.append(1) or discover()
        )
        threads = [threading.Thread(target=parafix.core.components) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        parafix.core.demos()
        assert len(calls) == 1

    def test_filters(self, site):
        site.add_component("one", "one", kind="scan", backend="torch")
        site.add_component("two", "two", kind="adjoint")
        assert {item.kind for item in parafix.core.components("scan")} == {"scan"}
        assert names_of("one") == {"one"}
        torch = parafix.core.components(backend="torch")
        assert "one" in {item.name for item in torch}
        assert {item.backend for item in torch} == {"torch"}
        both = parafix.core.components("adjoint", "torch")
        assert "two" not in {item.name for item in both}
        kinds = [item.kind for item in parafix.core.components()]
        assert kinds == sorted(kinds, key=["rootfinder", "scan", "adjoint"].index)

    @pytest.mark.parametrize("arguments", [("solver",), (None, "numpy"), ("",)])
    def test_filters_that_do_not_exist(self, registry, arguments):
        with pytest.raises(ValueError, match="must be one of"):
            parafix.core.components(*arguments)

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("import wonder_that_is_missing", "No module named 'wonder_that_is_"),
            ("raise ValueError('two\\n  lines')", "ValueError: two lines"),
            ("import sys\nsys.exit('no')", "SystemExit: no"),
            ("def parafix_scans(): ...", "hookimpl"),
            (
                "from parafix.core import hookimpl\n"
                "@hookimpl\ndef parafix_solvers(): ...",
                "parafix_solvers",
            ),
            (
                "from parafix.core import hookimpl\n"
                "@hookimpl\ndef parafix_scans(registry): ...",
                "registry",
            ),
            (
                "from parafix.core import hookimpl\n"
                "@hookimpl\ndef parafix_scans(): raise RuntimeError('at once')",
                "parafix_scans() raised RuntimeError: at once",
            ),
            (
                "from parafix.core import hookimpl\n"
                "@hookimpl\ndef parafix_scans(): return 5",
                "parafix_scans() raised TypeError",
            ),
            (
                "from parafix.core import Component, hookimpl\n"
                "@hookimpl\ndef parafix_scans():\n"
                "    return Component('scan', 'lone', 'jax', 'a:B')",
                "must yield Components, and returned one",
            ),
            (
                "from parafix.core import components, hookimpl\ncomponents()",
                "while plugins are being loaded",
            ),
        ],
    )
    def test_broken_plugin(self, site, source, words):
        site.add("broken", source)
        site.add("healthy", HEALTHY, files={"_target.py": "class Thing: ..."})
        assert names_of("broken") == set()
        assert parafix.core.get("scan", "healthy", backend="jax").__name__ == "Thing"
        (reason,) = failures_of("broken")
        assert words in reason
        assert "\n" not in reason

    def test_failure_says_where(self, site):
        site.add("broken", "def helper():\n    return 1 / 0\n\n\nhelper()\n")
        (failure,) = parafix.core.failures()
        assert failure.plugin == "broken"
        assert "ZeroDivisionError" in failure.reason
        assert "in helper" in failure.traceback

    def test_broken_target_is_no_failure_of_the_plugin(self, site):
        site.add_component("wonder", "wonder", target_source="1 / 0")
        assert names_of("wonder") == {"wonder"}
        assert failures_of("wonder") == []

    def test_good_items_beside_bad_ones_are_kept(self, site):
        site.add(
            "mixed",
            """
from parafix.core import Component, Demo, hookimpl

@hookimpl
def parafix_scans():
    yield "a string"
    yield Component("scan", "first", "jax", "a:B")
    yield Component("adjoint", "elsewhere", "jax", "a:B")
    yield Demo("demo", "a:b", "")
    yield Component("scan", "second", "torch", "a:B")
    raise RuntimeError("half way")

@hookimpl
def parafix_adjoints():
    yield Component("adjoint", "third", "jax", "a:B")

@hookimpl
def parafix_demos():
    yield Component("scan", "not-a-demo", "jax", "a:B")
    yield Demo("shown", "a:b", "")
""",
        )
        assert names_of("mixed") == {"first", "second", "third"}
        shown = [demo for demo in parafix.core.demos() if demo.distribution == "mixed"]
        assert [demo.name for demo in shown] == ["shown"]
        reasons = failures_of("mixed")
        expected = [
            "yields Components, but yielded 'a string'",
            "yields scans, but yielded Component(kind='adjoint'",
            "yields Components, but yielded Demo(",
            "RuntimeError: half way",
            "yields Demos, but yielded Component(",
        ]
        assert len(reasons) == len(expected)
        for reason in expected:
            assert any(reason in found for found in reasons), reason

    def test_malformed_metadata_of_a_neighbour(self, site):
        site.add("neighbour", raw_entry_points="[console_scripts]\nno equals sign\n")
        site.add("healthy", HEALTHY)
        # What an interrupted upgrade leaves: one distribution, described twice.
        site.add("healthy", HEALTHY, version="0.9")
        assert names_of("healthy") == {"healthy"}
        (failure,) = parafix.core.failures()
        assert failure.distribution == "neighbour"
        assert "reading its entry points" in failure.reason

    def test_malformed_value_of_an_entry_point(self, site):
        site.add(
            "broken", raw_entry_points="[parafix.plugins]\nbroken = not a module\n"
        )
        site.add("healthy", HEALTHY)
        assert names_of("healthy") == {"healthy"}
        assert len(failures_of("broken")) == 1

    def test_plugin_may_be_an_object(self, site):
        source = """
from parafix.core import Component, hookimpl

class Plugin:
    @hookimpl
    def parafix_scans(self):
        return [Component("scan", "from-an-object", "jax", "a:B")]

plugin = Plugin()
"""
        site.add(
            "objects",
            raw_entry_points="[parafix.plugins]\nobjects = objects:plugin\n",
            files={"__init__.py": source},
        )
        assert names_of("objects") == {"from-an-object"}

    def test_the_registry_says_whose_it_is(self, site):
        site.add_component("honest", "thing", options="distribution='parafix-core'")
        assert names_of("honest") == {"thing"}


class TestBlocking:
    @pytest.mark.parametrize(
        "blocked", ["entry", "wonder-works", "Wonder_Works", " other , entry,"]
    )
    def test_block(self, site, monkeypatch, blocked):
        site.add_component("wonder-works", "wonder", entry_point="entry")
        site.add("healthy", HEALTHY)
        monkeypatch.setenv("PARAFIX_BLOCK_PLUGINS", blocked)
        assert names_of("wonder-works") == set()
        assert names_of("healthy") == {"healthy"}
        assert parafix.core.failures() == ()

    def test_names_that_block_nothing(self, site, registry, monkeypatch):
        site.add_component("wonder", "wonder", entry_point="entry")
        monkeypatch.setenv("PARAFIX_BLOCK_PLUGINS", "entry,typo")
        assert registry.discovery().unmatched == ("typo",)

    def test_blocked_plugin_is_not_imported(self, site, monkeypatch):
        site.add("broken", "1 / 0")
        monkeypatch.setenv("PARAFIX_BLOCK_PLUGINS", "broken")
        assert parafix.core.failures() == ()

    def test_message(self, site, monkeypatch):
        site.add_component("wonder", "wonder")
        monkeypatch.setitem(KNOWN, ("rootfinder", "wonder", "jax"), "wonder")
        monkeypatch.setenv("PARAFIX_BLOCK_PLUGINS", "wonder")
        message = message_of("rootfinder", "wonder", "jax")
        assert "installed but blocked by PARAFIX_BLOCK_PLUGINS" in message
        assert "pip install" not in message


class TestMissingNames:
    def test_kind_and_backend(self, registry):
        with pytest.raises(ValueError, match="'rootfinder', 'scan', 'adjoint'"):
            parafix.core.get("solver", "deer", backend="jax")
        with pytest.raises(ValueError, match="'jax', 'torch'"):
            parafix.core.get("rootfinder", "deer", backend="numpy")

    @pytest.mark.parametrize("name", [None, 3, object])
    def test_name_is_no_string(self, registry, name):
        with pytest.raises(TypeError, match="must be a string"):
            parafix.core.get("rootfinder", name, backend="jax")

    def test_not_installed(self, registry, monkeypatch):
        monkeypatch.setitem(KNOWN, ("scan", "wonder", "torch"), "parafix-wonder")
        expected = (
            "scan 'wonder' for torch comes with parafix-wonder, which is not "
            "installed: pip install 'parafix-wonder[torch]'"
        )
        assert message_of("scan", "wonder", "torch") == expected
        assert "not installed" in message_of("scan", "Parafix_Wonder:wonder", "torch")

    def test_typo_of_a_name_that_is_not_installed(self, registry, monkeypatch):
        monkeypatch.setitem(KNOWN, ("scan", "wonder", "torch"), "parafix-wonder")
        message = message_of("scan", "wodner", "torch")
        assert "'wonder' (pip install 'parafix-wonder[torch]')" in message

    def test_installed_but_broken(self, site, monkeypatch):
        monkeypatch.setitem(KNOWN, ("scan", "wonder", "jax"), "parafix-wonder")
        site.add("parafix-wonder", "1 / 0")
        message = message_of("scan", "wonder", "jax")
        assert "parafix-wonder, which is installed but did not load" in message
        assert "ZeroDivisionError" in message
        assert "parafix doctor" in message

    def test_installed_but_old(self, site, monkeypatch):
        monkeypatch.setitem(KNOWN, ("scan", "wonder", "jax"), "parafix-wonder")
        site.add_component("parafix-wonder", "other", version="0.3")
        message = message_of("scan", "wonder", "jax")
        assert "version 0.3 does not have it" in message
        assert "pip install --upgrade parafix-wonder" in message

    @pytest.mark.parametrize("typo", ["wonder-mxing", "WONDER_MIXING", "wondermixing"])
    def test_typo(self, site, typo):
        site.add_component("wonder", "wonder-mixing")
        message = message_of("rootfinder", typo, "jax")
        assert f"no rootfinder {typo!r} for jax" in message
        assert "did you mean 'wonder-mixing'?" in message
        assert ", wonder-mixing" in message

    def test_nothing_close(self, site):
        site.add_component("wonder", "wonder")
        message = message_of("rootfinder", "zzzzzz", "jax")
        assert "did you mean" not in message
        assert "wonder" in message

    def test_other_backend(self, site):
        site.add_component("wonder", "wonder", backend="torch")
        message = message_of("rootfinder", "wonder", "jax")
        assert "exists for torch, not for jax" in message

    def test_other_kind(self, site):
        site.add_component("wonder", "wonder", kind="scan")
        message = message_of("rootfinder", "wonder", "jax")
        assert "'wonder' is no rootfinder" in message
        assert "`scan=`" in message

    def test_other_distribution(self, site):
        site.add_component("wonder", "wonder")
        message = message_of("rootfinder", "absent:wonder", "jax")
        assert "absent registers no rootfinder 'wonder'" in message
        assert "registered by: wonder" in message
        assert "nobody registers" in message_of("rootfinder", ":wonder", "jax")

    def test_broken_plugins_are_mentioned(self, site):
        site.add("broken", "1 / 0")
        message = message_of("rootfinder", "zzzzzz", "jax")
        assert "broken" in message
        assert "parafix doctor" in message


class TestConflicts:
    def test_same_name(self, site):
        one = site.add_component("one", "same")
        site.add_component("two", "same", target_source="raise ImportError")
        site.add_component("three", "other")
        # Nobody has asked for it yet: the rest works.
        assert parafix.core.failures() == ()
        assert parafix.core.get("rootfinder", "other", backend="jax")
        message = message_of("rootfinder", "same", "jax", AmbiguousComponentError)
        assert "registered by one and by two" in message
        assert "'one:same' or 'two:same'" in message
        chosen = parafix.core.get("rootfinder", "one:same", backend="jax")
        assert chosen.__module__ == f"{one}._target"

    def test_alias_counts(self, site):
        site.add_component("one", "first", options="aliases=('shared',)")
        site.add_component("two", "shared")
        message_of("rootfinder", "shared", "jax", AmbiguousComponentError)
        assert parafix.core.get("rootfinder", "first", backend="jax")
        assert parafix.core.get("rootfinder", "one:shared", backend="jax")

    def test_kind_and_backend_are_part_of_the_key(self, site, registry):
        site.add_component("one", "same")
        site.add_component("two", "same", kind="scan")
        site.add_component("three", "same", backend="torch")
        assert registry.conflicts() == ()
        for kind, backend in [
            ("rootfinder", "jax"),
            ("scan", "jax"),
            ("rootfinder", "torch"),
        ]:
            assert parafix.core.get(kind, "same", backend=backend)

    def test_twice_by_one_distribution(self, site, registry):
        site.add(
            "twice",
            """
from parafix.core import Component, hookimpl

@hookimpl
def parafix_scans():
    yield Component("scan", "same", "jax", "twice._target:First")
    yield Component("scan", "other", "jax", "twice._target:Second", aliases=("same",))
""",
            files={"_target.py": "class First: ..."},
        )
        assert parafix.core.get("scan", "same", backend="jax").__name__ == "First"
        (reason,) = failures_of("twice")
        assert "registered twice" in reason
        assert "First" in reason
        assert "Second" in reason

    def test_demos(self, site, registry):
        site.add_demo("one", "same", "def main(argv): ...")
        site.add_demo("two", "same", "def main(argv): ...")
        with pytest.raises(AmbiguousComponentError, match="'one:same' or 'two:same'"):
            registry.find_demo("same")
        assert registry.find_demo("two:same").distribution == "two"
        assert len(registry.conflicts()) == 1


class TestTargets:
    @pytest.mark.parametrize("backend", ["jax", "torch"])
    def test_missing_framework(self, site, without, backend):
        without(backend)
        site.add_component(
            "wonder",
            "wonder",
            backend=backend,
            target_source=f"import {backend}",
            extras=["jax", "torch"],
        )
        message = message_of("rootfinder", "wonder", backend, MissingFrameworkError)
        assert message == (
            f"rootfinder 'wonder' for {backend} needs {backend}, which is not "
            f"installed: pip install 'wonder[{backend}]'"
        )

    def test_missing_part_of_the_extra(self, site, without):
        without("equinox")
        site.add_component("wonder", "wonder", target_source="import equinox")
        message = message_of("rootfinder", "wonder", "jax", MissingFrameworkError)
        assert "needs equinox" in message
        # This distribution has no such extra: the core's own does it.
        assert "pip install 'parafix-core[jax]'" in message

    @pytest.mark.parametrize(
        ("source", "words"),
        [
            ("import wonder_that_is_missing", "No module named 'wonder_that_is_"),
            (
                "raise ModuleNotFoundError('an old jax', name='jax.new_module')",
                "an old jax",
            ),
            ("raise RuntimeError('of its own')", "RuntimeError: of its own"),
            ("Other = 1", "has no attribute 'Thing'"),
        ],
    )
    def test_broken_target(self, site, source, words):
        site.add_component("wonder", "wonder", target_source=source)
        with pytest.raises(ComponentImportError) as caught:
            parafix.core.get("rootfinder", "wonder", backend="jax")
        assert not isinstance(caught.value, MissingFrameworkError)
        assert isinstance(caught.value, ImportError)
        assert caught.value.__cause__ is not None
        assert words in str(caught.value)
        assert "registered by wonder" in str(caught.value)

    def test_nested_attribute(self, site):
        site.add(
            "wonder",
            "from parafix.core import Component, hookimpl\n"
            "@hookimpl\ndef parafix_scans():\n"
            "    yield Component('scan', 'inner', 'jax', 'wonder:Outer.make')\n",
            files={"__init__.py": "class Outer:\n    make = int\n"},
        )
        assert parafix.core.get("scan", "inner", backend="jax") is int


class TestRegister:
    def test_and_undo(self, registry):
        component = Component("scan", "mine", "jax", "fractions:Fraction")
        undo = parafix.core.register(component)
        assert parafix.core.get("scan", "mine", backend="jax").__name__ == "Fraction"
        assert parafix.core.get("scan", "local:mine", backend="jax")
        assert names_of("local") == {"mine"}
        undo()
        undo()
        assert names_of("local") == set()
        message_of("scan", "mine", "jax")

    def test_same_description_again(self, registry):
        component = Component("scan", "mine", "jax", "fractions:Fraction")
        first = parafix.core.register(component)
        second = parafix.core.register(component)
        assert len([c for c in parafix.core.components() if c.name == "mine"]) == 1
        first()
        assert parafix.core.get("scan", "mine", backend="jax")
        second()
        message_of("scan", "mine", "jax")

    def test_other_description_of_the_same_key(self, registry):
        parafix.core.register(Component("scan", "mine", "jax", "a:B"))
        other = Component("scan", "yours", "jax", "c:D", aliases=("mine",))
        with pytest.raises(ValueError, match="registered already, as a:B"):
            parafix.core.register(other)
        assert names_of("local") == {"mine"}
        parafix.core.register(dataclasses.replace(other, backend="torch"))

    def test_conflict_with_a_plugin(self, site):
        site.add_component("wonder", "same")
        undo = parafix.core.register(Component("rootfinder", "same", "jax", "math:inf"))
        message_of("rootfinder", "same", "jax", AmbiguousComponentError)
        assert parafix.core.get("rootfinder", "local:same", backend="jax") > 0
        undo()
        assert parafix.core.get("rootfinder", "same", backend="jax")

    def test_while_another_thread_looks_up(self, registry, monkeypatch):
        components = registry.components

        def interrupted():
            found = components()
            monkeypatch.setattr(registry, "components", components)
            registry.register(Component("scan", "mine", "jax", "fractions:Fraction"))
            return found

        monkeypatch.setattr(registry, "components", interrupted)
        message_of("scan", "yours", "jax")
        assert registry.find("scan", "mine", "jax").target == "fractions:Fraction"

    @pytest.mark.parametrize("thing", [None, "scan", Demo("a", "a:b", ""), Component])
    def test_only_components(self, registry, thing):
        with pytest.raises(TypeError, match="register takes a Component"):
            parafix.core.register(thing)

    @given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12))
    @settings(deadline=None)
    def test_any_order(self, steps):
        # Registering and undoing in any order leaves what a plain dictionary would
        # hold; a lookup after every step would meet an index that is out of date.
        registry = Registry()
        installed = {item.name for item in registry.components()}
        undos: dict[str, Callable[[], None]] = {}
        for name, add in steps:
            if add and name not in undos:
                component = Component("scan", name, "torch", f"a:{name}")
                undos[name] = registry.register(component)
            elif not add and name in undos:
                undos.pop(name)()
            assert {item.name for item in registry.components()} - installed == set(
                undos
            )
            for candidate in "abc":
                if candidate in undos:
                    found = registry.find("scan", candidate, "torch")
                    assert found.target == f"a:{candidate}"
                else:
                    with pytest.raises(UnknownComponentError):
                        registry.find("scan", candidate, "torch")


def ours(item: Component | Demo) -> bool:
    """Whether this repository registers it. Others may be called parafix-... too."""
    # A name of ours may stand for a class of a library, and a package may be so new
    # that it is not in the table.
    return item.target.startswith("parafix.") or item.distribution in KNOWN.values()


class TestOurOwn:
    """What the installed distributions of this repository register."""

    def test_core_is_there(self, registry):
        assert names_of("parafix-core") >= {"sequential", "associative", "implicit"}

    def test_nothing_is_broken(self, registry):
        for distribution in {*KNOWN.values(), "parafix-core"}:
            assert failures_of(distribution) == []

    def test_keys_are_distinct(self, registry):
        keys = [
            (item.kind, name, item.backend)
            for item in parafix.core.components()
            if ours(item)
            for name in item.names
        ]
        assert keys
        assert len(keys) == len(set(keys))

    def test_known_table(self, registry):
        # Equal, and not only a part: a name that is new, gone or moved to another
        # distribution shows here. What is not installed cannot be compared.
        installed = {plugin.distribution for plugin in registry.discovery().plugins}
        assert "parafix-core" in installed
        registered = {
            (item.kind, name, item.backend): item.distribution
            for item in parafix.core.components()
            if ours(item)
            for name in item.names
        }
        assert registered == {
            key: owner for key, owner in KNOWN.items() if owner in installed
        }
        demos = {
            demo.name: demo.distribution for demo in parafix.core.demos() if ours(demo)
        }
        assert demos == {
            name: owner
            for name, (owner, _) in KNOWN_DEMOS.items()
            if owner in installed
        }

    def test_known_extras(self, registry):
        for owner, extras in KNOWN_DEMOS.values():
            try:
                offered = metadata.metadata(owner).get_all("Provides-Extra") or []
            except metadata.PackageNotFoundError:
                continue
            assert set(extras) <= set(offered)

    @pytest.mark.parametrize("key", sorted(KNOWN))
    def test_known_keys_can_be_registered(self, key):
        Component(*key, "a:B")

    def test_summaries(self, registry):
        for item in parafix.core.components():
            if ours(item):
                assert 0 < len(item.summary) <= 72

    @pytest.mark.parametrize("position", [0, 1, -1])
    def test_one_letter_missing(self, registry, position):
        for item in filter(ours, parafix.core.components()):
            letters = list(item.name)
            del letters[position]
            message = message_of(item.kind, "".join(letters), item.backend)
            assert repr(item.name) in message
