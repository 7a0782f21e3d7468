"""Flower's own SecAgg+ in one process: its server workflow and its client modifier, joined by a grid in memory.

Run by benchmarks/secure_sum.py with the interpreter of an environment that holds flwr; needs nothing of this project.
Says {"ready": ...} once everything is imported, then runs one round for every line on its standard input and answers
each with a line of JSON: the seconds, what one client uploads and how far the result is from the true mean.

The graph is complete (num_shares=1.0) and the reconstruction threshold is the one given; every other setting is
Flower's default. Messages are handed over as they are, but for a copy of each message's small settings, which Flower's
modifier takes apart and its workflow shares between clients; with --wire each becomes Flower's bytes and back.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from importlib.metadata import version
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.compat.common import recorddict_compat
from flwr.proto.recorddict_pb2 import RecordDict as WireRecordDict
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.server_config import ServerConfig
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD, Key
from flwr.supercore.task_identity import TaskIdentity

EXAMPLES = 1_000  # of every client: Flower's default max_weight, with which its grid is finest
TOLERANCE = 1e-4  # of the mean; a wrong sum is off by far more


class Registered(ClientProxy):
    """A client as the client manager knows it; nothing is ever called through it."""

    def __init__(self, node_id: int) -> None:
        super().__init__(str(node_id))
        self.node_id = node_id

    def _unused(self, *_arguments: Any, **_options: Any) -> Any:
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _unused


Registered.__abstractmethods__ = frozenset()


def carry(content: RecordDict) -> RecordDict:
    """Turn a message's content into Flower's bytes and back."""
    return recorddict_from_proto(WireRecordDict.FromString(recorddict_to_proto(content).SerializeToString()))


class MemoryGrid:
    """Hands every message to its client's modifier and collects the answers; keeps those of one client."""

    def __init__(self, updates: dict[int, np.ndarray], *, wire: bool) -> None:
        self._updates, self._wire = updates, wire
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={}) for node in updates
        }
        self._sent = 0
        self.first_answers: list[RecordDict] = []

    def send_and_receive(self, messages: list[Message], **_timeout: float | None) -> list[Message]:
        """Answer every message of a stage."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if self._wire:
            content = carry(message.content)
        else:
            content = RecordDict(dict(message.content))
            content[RECORD_KEY_CONFIGS] = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))
        arrived = Message(
            content,
            dst_node_id=node,
            message_type=message.metadata.message_type,
            group_id=message.metadata.group_id,
        )
        self._sent += 1
        arrived.metadata.__dict__["_message_id"] = str(self._sent)  # a real grid gives every message one
        answer = secaggplus_mod(arrived, self._contexts[node], self._train)
        if node == 1:
            self.first_answers.append(answer.content)
        return Message(carry(answer.content), reply_to=arrived) if self._wire else answer

    def _train(self, message: Message, context: Context) -> Message:
        parameters = ndarrays_to_parameters([self._updates[context.node_id]])
        fit = FitRes(Status(Code.OK, ""), parameters, EXAMPLES, {})
        return Message(recorddict_compat.fitres_to_recorddict(fit, keep_input=False), reply_to=message)


def one_round(updates: dict[int, np.ndarray], threshold: int, *, wire: bool) -> dict[str, float]:
    """Run one round; RuntimeError if it ends without the mean."""
    floats = updates[1].size
    manager = SimpleClientManager()
    for node in updates:
        manager.register(Registered(node))
    strategy = FedAvg(min_fit_clients=len(updates), min_available_clients=len(updates), fraction_fit=1.0)
    base = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={})
    context = LegacyContext(base, config=ServerConfig(num_rounds=1), strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: 1, Key.START_TIME: 0.0})
    start = ndarrays_to_parameters([np.zeros(floats, np.float32)])
    context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(start, True)
    grid = MemoryGrid(updates, wire=wire)
    workflow = SecAggPlusWorkflow(num_shares=1.0, reconstruction_threshold=threshold)
    begin, begin_processor = time.perf_counter(), time.process_time()
    workflow(grid, context)
    seconds, processor = time.perf_counter() - begin, time.process_time() - begin_processor
    record = context.state.array_records[MAIN_PARAMS_RECORD]
    result = parameters_to_ndarrays(recorddict_compat.arrayrecord_to_parameters(record, True))[0]
    error = float(np.max(np.abs(result - np.mean(list(updates.values()), axis=0, dtype=np.float64))))
    if not error < TOLERANCE:
        raise RuntimeError(f"the mean is off by {error}")
    sent = sum(recorddict_to_proto(answer).ByteSize() for answer in grid.first_answers)
    return {"seconds": seconds, "processor_seconds": processor, "bytes_per_float": sent / floats, "max_error": error}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--floats", type=int, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--threshold", type=int, required=True)
    parser.add_argument("--wire", action="store_true", help="turn every message into Flower's bytes and back")
    options = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1
    updates = {
        node: np.random.default_rng(node).normal(0.0, 0.1, options.floats).astype(np.float32)
        for node in range(1, options.clients + 1)
    }
    small = {node: np.zeros(10, np.float32) for node in (1, 2, 3)}
    one_round(small, 2, wire=options.wire)  # imports and caches are warm before the clock runs
    print(json.dumps({"ready": f"flwr {version('flwr')}"}), flush=True)
    for _line in sys.stdin:
        print(json.dumps(one_round(updates, options.threshold, wire=options.wire)), flush=True)


if __name__ == "__main__":
    main()
