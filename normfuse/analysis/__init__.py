"""Facts about a captured graph: channel maps, streams, ownership of weights. Nothing is changed here."""

from normfuse.analysis import rows_elementwise, rows_indexed, rows_layout, rows_linear, rows_reduce
from normfuse.analysis.channel_map import Centre, ChannelMap, Diagonal, Trait

__all__ = [
    "Centre",
    "ChannelMap",
    "Diagonal",
    "Trait",
    "rows_elementwise",
    "rows_indexed",
    "rows_layout",
    "rows_linear",
    "rows_reduce",
]
