"""What TensorBoard reads."""

from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """All events of the files in a folder, whose records are a length, a sum, the event, and a sum."""
    for file in sorted(folder.glob("events*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 16 + length
