"""The contract, on the fake."""

from __future__ import annotations

import pytest

from lightkube_template_spawner.cluster.api import Api
from tests.contract.cases import CASES, Case, names


@pytest.mark.parametrize("case", CASES, ids=names())
async def test_contract(case: Case, api: Api) -> None:
    await case(api, "hub")
