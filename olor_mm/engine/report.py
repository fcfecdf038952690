"""The anchor report: which layers are pulled back, how strongly, and where theta_0 came from."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from olor_mm.layers import LayerTable
from olor_mm.rollback.rules import is_off

__all__ = ['format_left_alone', 'format_report', 'format_unmatched', 'table']

_NAMES = {'olor': 'OLOR', 'spd': 'SPD', 'projection': 'projection'}


def table(rows: Iterable[Sequence[object]], header: Sequence[str]) -> str:
    """A plain text table; numbers to the right, everything else to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(line[j]) for line in [list(header), *cells]) for j in range(len(header))]

    def number(text: str) -> bool:
        return text.replace(',', '').replace('.', '').replace('e-', '').replace('e+', '').isdigit()

    def line(row: Sequence[str]) -> str:
        return '  '.join(c.rjust(w) if number(c) else c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()

    return '\n'.join(['  '.join(h.ljust(w) for h, w in zip(header, widths, strict=True)).rstrip(), *map(line, cells)])


def format_report(
    layers: LayerTable,
    names: Mapping[str, Tensor],
    levels: Mapping[Tensor, float],
    origin: Sequence[str],
    sizes: Mapping[Tensor, int] | None = None,
    rule: str = 'olor',
) -> str:
    """The report as text.

    Args:
        layers: Layer indices.
        names: Canonical name to parameter, of everything that has a layer index.
        levels: Parameter to lambda.
        origin: Lines that say where theta_0 came from.
        sizes: Parameter to its number of elements, where it holds but a shard of them. Defaults to None.
        rule: What the levels are for; with 'projection' they are radii. Defaults to 'olor'.

    Returns:
        Several lines: a row for each layer with its tensors, parameters and level; then ``origin``.
    """

    def count(params: Iterable[Tensor]) -> str:
        return f'{sum(p.numel() if sizes is None else sizes[p] for p in params):,}'

    rows = []
    for i in sorted({layers.index[name] for name in names}):
        params = [p for name, p in names.items() if layers.index[name] == i]
        trained = [p for p in params if p.requires_grad and p in levels]
        level = f'{max(levels[p] for p in trained):.3g}' if trained else 'frozen'
        rows.append([i, layers.labels.get(i, ''), len(params), count(params), level])
    how = ', '.join(f'{root or "the model"}: by {way}' for root, way in layers.how.items())
    rolled = [p for p in names.values() if p in levels and not is_off(rule, levels[p]) and p.requires_grad]
    head = f'Weight rollback ({_NAMES[rule]}) of {len(rolled)} tensors, {count(rolled)} parameters; layer index: {how}'
    return '\n'.join(
        [
            head,
            table(rows, ['i', 'layer', 'tensors', 'parameters', 'radius' if rule == 'projection' else 'level']),
            *origin,
        ]
    )


def format_left_alone(
    names: Mapping[str, Tensor], shapes: Mapping[Tensor, tuple[int, ...]], most: int = 20
) -> list[str]:
    """Lines on what no checkpoint delivered.

    Args:
        names: Canonical name to parameter, of these.
        shapes: Parameter to the shape that a checkpoint had for it, where one had it.
        most: How many are named in a line. Defaults to 20.

    Returns:
        At most two lines: what has another shape in the checkpoint, and what is in none.
    """
    reshaped = [f'{name} {shapes[p]} -> {tuple(p.shape)}' for name, p in names.items() if p in shapes]
    absent = [name for name, p in names.items() if p not in shapes]
    lines = []
    for found, what in ((reshaped, 'have another shape in the checkpoint'), (absent, 'are in no checkpoint')):
        if found:
            more = f' and {len(found) - most} more' if len(found) > most else ''
            lines.append(f'theta_0: {len(found)} tensors {what} and are left alone: {", ".join(found[:most])}{more}')
    return lines


def format_unmatched(names: Mapping[str, Tensor], total: int, shapes: Mapping[Tensor, tuple[int, ...]]) -> str:
    """A warning on what is pulled back to values that no checkpoint delivered.

    Args:
        names: Canonical name to parameter, of these.
        total: How many tensors are pulled back.
        shapes: Parameter to the shape that a checkpoint had for it, where one had it.
    """
    shown = ', '.join(
        name + (f' (there it has shape {shapes[p]})' if p in shapes else '') for name, p in list(names.items())[:5]
    )
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return (
        f'theta_0: {len(names)} of {total} tensors came from no checkpoint and are pulled back to their initial '
        f"values: {shown}{more}. optim_wrapper.rollback.roots='loaded' leaves such weights alone. (What a constructor "
        'loads by itself, as timm does with pretrained=True, is not seen here.)'
    )
