"""What goes wrong with data: folders laid out otherwise than expected, and images that cannot be read."""

__all__ = ['DatasetLayoutError', 'UnreadableImageError']


class DatasetLayoutError(ValueError):
    """Files of a data set that are not as they were published: the message names the file and the layout expected."""


class UnreadableImageError(ValueError):
    """An image that is missing or that no decoder reads: the message names the file."""
