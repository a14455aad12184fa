"""Fits of data that are larger than memory: rows from memory maps, shards or batches, in bounded memory, put down and taken up exactly."""

from jaxdict.streaming.job import StreamProgress
from jaxdict.streaming.run import StreamHistory, StreamSolution, fit_stream
from jaxdict.streaming.written_codes import read_codes, write_codes
