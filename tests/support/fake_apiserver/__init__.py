"""An API server in memory, as a transport: ``Api(kubeconfig, transport=FakeApiServer())``.

It speaks the part of the API that the spawner uses, in the way a real server was seen to speak it;
``tests/contract`` runs the same functions on it and on a real cluster. What it does not do: lists
are atomic in server-side apply (no merging by key), nothing is validated except what ``apply``
says nor defaulted except what ``controllers`` says, ``managedFields`` name their managers but not
their fields, watches begin at a version and never end by themselves, no subresources.

From the wire inwards:

- ``server``: the server that tests make, and what they do behind the API's back;
- ``behaviour``: what tests set about it;
- ``transport``: HTTP in and out, the log of requests, and faults;
- ``messages``: a request that arrived, and the answers that refuse it;
- ``routes``: which part answers a request;
- ``authorization``, ``discovery``, ``listing``, ``watches``, ``apply``, ``deletion``: those parts;
- ``storage``: the objects, and the log of their changes;
- ``controllers``: what acts on the objects beside the API server;
- ``kinds``, ``selectors``, ``paths``: words that these share.
"""

from __future__ import annotations

from tests.support.fake_apiserver.kinds import KINDS, Served
from tests.support.fake_apiserver.messages import Refusal, Seen
from tests.support.fake_apiserver.server import FakeApiServer
from tests.support.fake_apiserver.transport import Fault, text

__all__ = ["KINDS", "FakeApiServer", "Fault", "Refusal", "Seen", "Served", "text"]
