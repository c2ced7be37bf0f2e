"""Between a network and the values of the dimensions it depends on."""

from collections.abc import Container, Mapping, Sequence

from autopeft.errors import ConfigurationError
from autopeft.spaces.bound import Read
from autopeft.spaces.configuration import LEARNING_RATE, Configuration, MethodSetting, Scalar
from autopeft.spaces.dimension import Cell, Level
from autopeft.spaces.structure import BoundMethod, Structure
from autopeft.spaces.suggest import nearest
from autopeft.spaces.training import ACTIVE_WITH, is_active


def assemble(structure: Structure, values: Mapping[str, object]) -> Configuration:
    """The network that `values` mean; values of dimensions that are inactive are not looked at.

    Raises:
        ConfigurationError: A missing or wrong value, a name that is no dimension, or no network.
    """
    known = {dimension.name for dimension in structure.dimensions}
    for name in values:
        if name not in known:
            raise ConfigurationError(f"{name}: no such dimension", hint=nearest(name, known) or "leave it out")
    return build_from(structure, values)


def build_from(structure: Structure, values: Mapping[str, object]) -> Configuration:
    """`assemble` for values whose names are known to be right."""
    return build_with(structure, lambda cell: cell.read(values))


def build_with(structure: Structure, read: Read) -> Configuration:
    """The network whose cells hold what `read` says; see `Structure.build`."""
    on = range(len(structure.layers)) if structure.mask is None else structure.mask.on(read)
    return structure.build(on, read)


def spell(structure: Structure, configuration: Configuration) -> dict[str, Scalar]:
    """Values of the active dimensions of `configuration`, in the order of the space's dimensions.

    Raises:
        ConfigurationError: It is not in this space; says where.
    """
    levels = cell_levels(structure, configuration)
    values: dict[str, Scalar] = {}
    for cell in structure.cells:
        level = levels.get(cell.name) if cell.dimensions else None
        if isinstance(level, tuple):
            values.update(cell.write(level))
        elif level is not None:
            values[cell.name] = level
    return values


def cell_levels(structure: Structure, configuration: Configuration) -> dict[str, Level]:
    """Levels of the active cells of `configuration`, by cell name; see `spell`."""
    positions = _positions(structure, configuration)
    on: Sequence[int] = range(len(structure.layers))
    levels: dict[str, Level] = {}
    if structure.mask is not None:
        on = sorted({position for row in positions.values() for position in row})
        structure.check_adapted(set(on))
        levels = structure.mask.spell(on)
    if structure.training or configuration.training:
        levels |= _training(structure, configuration)
    settings: dict[str, MethodSetting | None] = {}
    lookup = structure.lookup(settings, dict(configuration.training), lambda method: levels[method.size.cells[0].name])
    for method in structure.methods:
        setting = configuration.method(method.name)
        if method.when is None or method.when.holds(lookup):
            settings[method.name] = setting
            levels |= _method_levels(method, setting, on, positions.get(method.name, ()))
        elif setting is not None:
            raise ConfigurationError(
                f"{method.name}: present, though its condition ({method.when}) is false", hint="leave it out"
            )
    return levels


def _positions(structure: Structure, configuration: Configuration) -> dict[str, tuple[int, ...]]:
    names = {method.name for method in structure.methods}
    index = {layer: position for position, layer in enumerate(structure.layers)}
    found: dict[str, tuple[int, ...]] = {}
    for setting in configuration.methods:
        if setting.method not in names:
            raise ConfigurationError(
                f"{setting.method}: not in this space, which has {', '.join(sorted(names))}", hint="leave it out"
            )
        if not index.keys() >= set(setting.layers):
            outside = min(set(setting.layers) - index.keys())
            raise ConfigurationError(
                f"{setting.method}: layer {outside} is not adapted in this space",
                hint=f"it adapts {', '.join(map(str, structure.layers))}",
            )
        found[setting.method] = tuple(index[layer] for layer in setting.layers)
    return found


def _method_levels(
    method: BoundMethod, setting: MethodSetting | None, on: Sequence[int], present: Sequence[int]
) -> dict[str, Level]:
    sizes = dict.fromkeys(on, 0)
    if setting is not None:
        size = setting.column(method.size.field.name)
        sizes |= dict(zip(present, size, strict=True))  # type: ignore[arg-type]  # sizes are whole numbers
    levels = method.size.spell(on, tuple(sizes.values())) if on else {}
    if setting is None:
        return levels
    columns = dict(setting.fields)
    if setting.learning_rate is not None:
        columns[LEARNING_RATE] = setting.column(LEARNING_RATE)
        if method.rate is None:
            raise ConfigurationError(
                f"{method.name}.{LEARNING_RATE}: not decided by this space", hint="leave it out, or give it a domain"
            )
    for field in method.beside_size:
        if field.field.name not in columns:
            raise ConfigurationError(f"{field.place}: no value", hint="this space decides it: give it one")
        levels |= field.spell(present, columns[field.field.name])
    return levels


def _training(structure: Structure, configuration: Configuration) -> dict[str, Level]:
    given = dict(configuration.training)
    cells = dict(structure.training)
    expected = {name for name in cells if is_active(name, decided=cells, values=given)}
    for name in sorted(given.keys() ^ expected):
        side = "not given, though this space decides it" if name in expected else _why_not(name, cells)
        raise ConfigurationError(f"{name}: {side}", hint="add it" if name in expected else "leave it out")
    return {cells[name].name: _training_level(cells[name], given[name]) for name in cells if name in expected}


def _why_not(name: str, decided: Container[str]) -> str:
    if name not in decided:
        return "not decided by this space"
    other, values = ACTIVE_WITH[name]
    return f"means something only with {other} {' or '.join(map(str, values))}"


def _training_level(cell: Cell, value: Scalar) -> Level:
    if cell.dimensions:
        return cell.read({cell.name: value})
    if value != cell.default:
        raise ConfigurationError(f"{cell.name}: {value!r} is not in this space", hint=f"it has only {cell.default!r}")
    return value
