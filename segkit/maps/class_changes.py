"""Changes of a class table: classes merged, renamed, and given other colours and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from segkit.errors import UsageError
from segkit.io.class_table import MapClass, list_classes, parse_color
from segkit.task.classes import MAX_VALUE


@dataclass(frozen=True)
class NewClass:
    """A class of the result, and the positions of the classes that it is made of."""

    one: MapClass
    members: tuple[int, ...]


@dataclass(frozen=True)
class ClassChanges:
    """Changes of classes, which are named by their name or value; merged first, then renamed.

    Parameters
    ----------
    merge
        {new class: classes that become it}. If the new class is one that exists, it stays part of itself. Otherwise it
        has value and colour of the first of its classes.
    rename
        {name: new name}.
    colors, values
        {name after renaming: "#rrggbb"}, and codes in the same way.
    """

    merge: Mapping[str, Sequence[str]] = field(default_factory=dict)
    rename: Mapping[str, str] = field(default_factory=dict)
    colors: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_merging(self) -> bool:
        """Whether classes are merged."""
        return bool(self.merge)

    def apply(self, classes: Sequence[MapClass], owner: str) -> tuple[NewClass, ...]:
        """Return the new classes, in the order of the old ones; `owner` is what has them, for messages.

        Raises
        ------
        UsageError
            A class does not exist or is named twice, two classes get the same name or value, or a colour or value is
            invalid.
        """
        found = self._renamed(self._merged(classes, owner), owner)
        by_name = {new.one.name: new for new in found}
        for changed, what in ((self.colors, "color"), (self.values, "value")):
            for name in changed:
                if name not in by_name:
                    raise UsageError(f"{what} of {name!r}: the result has no such class; it has {', '.join(by_name)}")
        found = tuple(replace(new, one=self._recoloured(new.one)) for new in found)
        _check_values(found)
        return found

    def _merged(self, classes: Sequence[MapClass], owner: str) -> tuple[NewClass, ...]:
        target: dict[int, str] = {}
        for name, members in self.merge.items():
            own = [at for at, one in enumerate(classes) if one.name == name]
            for at in (*own, *(find_class(classes, each, owner) for each in members)):
                if target.setdefault(at, name) != name:
                    raise UsageError(f"{classes[at].name} cannot become both {target[at]} and {name}; name it once")
        groups: dict[str, list[int]] = {}
        for at, one in enumerate(classes):
            groups.setdefault(target.get(at, one.name), []).append(at)
        return tuple(
            NewClass(self._of_group(name, [classes[at] for at in members], classes, owner), tuple(members))
            for name, members in groups.items()
        )

    def _of_group(self, name: str, members: Sequence[MapClass], classes: Sequence[MapClass], owner: str) -> MapClass:
        """Return the class that a group becomes: the one of its name, else the first that was named, with its name."""
        if name not in self.merge or any(one.name == name for one in members):
            return next(one for one in members if one.name == name)
        first = classes[find_class(classes, self.merge[name][0], owner)]
        color = next((one.color for one in (first, *members) if one.color), None)
        return MapClass(name, first.value, all(one.background for one in members), color)

    def _renamed(self, found: Sequence[NewClass], owner: str) -> tuple[NewClass, ...]:
        classes = [new.one for new in found]
        names = {find_class(classes, old, owner): new for old, new in self.rename.items()}
        result = tuple(
            replace(new, one=replace(new.one, name=names.get(at, new.one.name))) for at, new in enumerate(found)
        )
        known: set[str] = set()
        for new in result:
            if not new.one.name.strip():
                raise UsageError("a class cannot have an empty name")
            if new.one.name in known:
                raise UsageError(f"two classes would be called {new.one.name}; merge them, or choose another name")
            known.add(new.one.name)
        return result

    def _recoloured(self, one: MapClass) -> MapClass:
        color, value = self.colors.get(one.name, one.color), self.values.get(one.name, one.value)
        try:
            _ = color and parse_color(color)
        except ValueError as error:
            raise UsageError(f"color of {one.name}: {error}") from None
        return replace(one, color=color, value=value)


def find_class(classes: Sequence[MapClass], alias: str, owner: str) -> int:
    """Return the position of a class by its name, else by its value.

    Raises
    ------
    UsageError
        There is none.
    """
    names = [one.name for one in classes]
    values = [str(one.value) for one in classes]
    for known in (names, values):
        if alias in known:
            return known.index(alias)
    raise UsageError(f"{owner} has no class {alias!r}; it has {list_classes(classes)}")


def _check_values(found: Sequence[NewClass]) -> None:
    owners: dict[int, str] = {}
    for new in found:
        one = new.one
        if not 0 <= one.value <= MAX_VALUE:
            raise UsageError(f"{one.name} has value {one.value}; a map holds 0 to {MAX_VALUE}, give it another value")
        if owners.setdefault(one.value, one.name) != one.name:
            raise UsageError(f"{owners[one.value]} and {one.name} both have value {one.value}; give one another value")
