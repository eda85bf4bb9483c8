"""What our account may do, and the reviews that tell it."""

from __future__ import annotations

from tests.support.fake_apiserver.behaviour import Behaviour
from tests.support.fake_apiserver.kinds import VERBS, Served
from tests.support.fake_apiserver.messages import Obj, Refusal, Seen
from tests.support.fake_apiserver.storage import Storage


class Authorization:
    """The rules that hold everywhere, those of RoleBindings in a namespace, and prohibitions."""

    def __init__(self, storage: Storage, behaviour: Behaviour) -> None:
        self._storage = storage
        self._behaviour = behaviour

    def need(self, verb: str, served: Served, namespace: str, name: str) -> None:
        """Refuse what is not allowed."""
        if not self._may(verb, served, namespace):
            subject = f'{served.qualified} "{name}"' if name else served.qualified
            raise Refusal(
                403,
                "Forbidden",
                f'{subject} is forbidden: User "hub" cannot {verb} resource "{served.plural}" in '
                f'API group "{served.group}" in the namespace "{namespace}"',
            )

    def review(self, seen: Seen) -> Obj | None:
        """The answer, if the request asks about our account."""
        asked = seen.path.rpartition("/")[2]
        if asked == "selfsubjectrulesreviews":
            rules = self._told(seen.body["spec"]["namespace"])
            status: Obj = {"resourceRules": rules, "incomplete": self._behaviour.incomplete}
            return {**seen.body, "status": {**status, "nonResourceRules": []}}
        if asked == "selfsubjectaccessreviews":
            attributes = seen.body["spec"]["resourceAttributes"]
            served = self._behaviour.kinds.at((attributes["group"], attributes["resource"]))
            allowed = self._may(attributes["verb"], served, attributes["namespace"])
            return {**seen.body, "status": {"allowed": allowed}}
        if asked == "selfsubjectreviews":
            return {**seen.body, "status": {"userInfo": {"username": "hub"}}}
        return None

    def _told(self, namespace: str) -> list[Obj]:
        if self._behaviour.incomplete:
            return []
        if not self._behaviour.forbidden:
            return self._rules_in(namespace)
        return [
            {
                "apiGroups": [served.group],
                "resources": [served.plural],
                "verbs": [verb for verb in VERBS if self._may(verb, served, namespace)],
            }
            for served in self._behaviour.kinds
        ]

    def _rules_in(self, namespace: str) -> list[Obj]:
        bindings = self._storage.of(("rbac.authorization.k8s.io", "rolebindings"))
        bound = [item["roleRef"]["name"] for key, item in bindings.items() if key[0] == namespace]
        given = (rule for name in bound for rule in self._behaviour.roles.get(name, ()))
        return [*self._behaviour.rules, *given]

    def _may(self, verb: str, served: Served, namespace: str) -> bool:
        return (verb, served.plural) not in self._behaviour.forbidden and any(
            {served.group, "*"} & {*rule.get("apiGroups", ())}
            and {served.plural, "*"} & {*rule.get("resources", ())}
            and {verb, "*"} & {*rule.get("verbs", ())}
            and not rule.get("resourceNames")
            for rule in self._rules_in(namespace if served.namespaced else "")
        )
