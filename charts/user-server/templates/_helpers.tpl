{{/*
A name for an object: PREFIX-INSTANCE--SLUG. No slug or prefix holds two dashes, so two hubs in one
namespace cannot meet. Too long or not a DNS label: cut, with a hash of the whole.
Arguments: prefix, instance, slug.
*/}}
{{- define "user-server.nameOf" -}}
{{- $whole := printf "%s-%s--%s" (index . 0) (index . 1) (index . 2) -}}
{{- $name := regexReplaceAll "[^a-z0-9-]" (lower $whole) "-" -}}
{{- if or (ne $name $whole) (gt (len $name) 63) -}}
{{- printf "%s-%s" ($name | trunc 50 | trimSuffix "-") (sha256sum $whole | trunc 12) -}}
{{- else -}}
{{- $name -}}
{{- end -}}
{{- end -}}

{{- define "user-server.name" -}}
{{- include "user-server.nameOf" (list "jupyter" .Values.instance .Values.escaped_user_server) -}}
{{- end -}}

{{/*
With internal_ssl the hub connects by name, which only a Service has.
*/}}
{{- define "user-server.connection" -}}
{{- ternary "service" .Values.connection (not (empty .Values.internal_ssl)) -}}
{{- end -}}

{{/*
Its address by that name is new at each start, and old ones are remembered: so the name is new, too.
*/}}
{{- define "user-server.serviceName" -}}
{{- with .Values.internal_ssl -}}
{{- $slug := printf "%s-%s" $.Values.escaped_user_server .id -}}
{{- include "user-server.nameOf" (list "jupyter" $.Values.instance $slug) -}}
{{- else -}}
{{- include "user-server.name" . -}}
{{- end -}}
{{- end -}}

{{- define "user-server.certificateName" -}}
{{- include "user-server.nameOf" (list "certificate" .Values.instance .Values.escaped_user_server) -}}
{{- end -}}

{{- define "user-server.claimName" -}}
{{- $slug := ternary .Values.escaped_user_server .Values.escaped_username .Values.storage.perServer -}}
{{- .Values.storage.claimName | default .Values.former_pvc_name | default
    (include "user-server.nameOf" (list "claim" .Values.instance $slug)) -}}
{{- end -}}

{{/*
The image of a KubeSpawner configuration is used when none is set, so that switching spawners
switches nothing else.
*/}}
{{- define "user-server.image" -}}
{{- $kubespawner := index .Values "kubespawner" | default dict -}}
{{- .Values.image | default (index $kubespawner "image")
    | default "quay.io/jupyterhub/k8s-singleuser-sample:4.4.0" -}}
{{- end -}}

{{/*
Labels that find one user's objects, and one server's.
*/}}
{{- define "user-server.userSelector" -}}
app.kubernetes.io/instance: {{ .Values.instance | quote }}
hub.jupyter.org/username: {{ .Values.escaped_username | quote }}
{{- end -}}

{{- define "user-server.serverSelector" -}}
{{ include "user-server.userSelector" . }}
hub.jupyter.org/servername: {{ .Values.escaped_servername | quote }}
{{- end -}}

{{/*
Labels of all objects: those above, Zero to JupyterHub's (its network policies select by them), and
the administrator's. Arguments: context, component, whether the object is one server's.
*/}}
{{- define "user-server.labels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $isServer := index . 2 -}}
{{- $kubespawner := index $root.Values "kubespawner" | default dict -}}
{{- include (ternary "user-server.serverSelector" "user-server.userSelector" $isServer) $root }}
app: jupyterhub
component: {{ $component }}
app.kubernetes.io/component: {{ $component }}
{{- $more := merge dict $root.Values.extraLabels (index $kubespawner "common_labels" | default dict)
    (dict "app.kubernetes.io/name" "jupyterhub") }}
{{- if $isServer }}
{{- $more = merge dict $more (index $root.Values "labels" | default dict)
    (index $kubespawner "extra_labels" | default dict)
    (dict "hub.jupyter.org/network-access-hub" "true") }}
{{- end }}
{{- range $key, $value := omit $more "app" "component" "app.kubernetes.io/component"
    "app.kubernetes.io/instance" "hub.jupyter.org/username" "hub.jupyter.org/servername" }}
{{ quote $key }}: {{ quote $value }}
{{- end }}
{{- end -}}

{{/*
Annotations: how long the object lives, whether the hub connects to it, and the administrator's.
Arguments: context, lifecycle, whether it is the connection, defaults.
*/}}
{{- define "user-server.annotations" -}}
{{- $root := index . 0 -}}
kubetemplatespawner/lifecycle: {{ index . 1 }}
{{- if index . 2 }}
kubetemplatespawner/connection: "true"
{{- end }}
{{- /* Where the hub connects to is not for those to say who may be given annotations. */}}
{{- $passed := omit (index $root.Values "annotations" | default dict) "kubetemplatespawner/connection-address"
    "kubetemplatespawner/connection-port" "kubetemplatespawner/connection-scheme" }}
{{- $more := merge dict $root.Values.extraAnnotations $passed (index . 3) }}
{{- range $key, $value := omit $more "kubetemplatespawner/lifecycle" "kubetemplatespawner/connection" }}
{{ quote $key }}: {{ quote $value }}
{{- end }}
{{- end -}}

{{/*
The variables that stay on the pod: those that come from other objects, and those that use others
as $(NAME), which Kubernetes expands only here. All others are in the secret.
*/}}
{{- define "user-server.podEnv" -}}
{{- range .Values.env_list -}}
{{- if hasKey . "valueFrom" }}
- name: {{ .name | quote }}
  valueFrom: {{ .valueFrom | toJson }}
{{- else if contains "$(" .value }}
- name: {{ .name | quote }}
  value: {{ .value | quote }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/*
Numbers become floating-point in Helm: bytes are printed as integers on purpose.
*/}}
{{- define "user-server.resources" -}}
{{- $limits := deepCopy .Values.resources.limits -}}
{{- $requests := deepCopy .Values.resources.requests -}}
{{- with index .Values "mem_limit" }}{{ $_ := set $limits "memory" (int64 . | toString) }}{{ end -}}
{{- with index .Values "mem_guarantee" }}{{ $_ := set $requests "memory" (int64 . | toString) }}{{ end -}}
{{- with index .Values "cpu_limit" }}{{ $_ := set $limits "cpu" (toString .) }}{{ end -}}
{{- with index .Values "cpu_guarantee" }}{{ $_ := set $requests "cpu" (toString .) }}{{ end -}}
{{- dict "limits" $limits "requests" $requests | toJson -}}
{{- end -}}

{{/*
Null keeps a number out. 0 is a number, and `merge` would take it, as it takes false, for nothing.
*/}}
{{- define "user-server.podSecurityContext" -}}
{{- $context := deepCopy .Values.podSecurityContext -}}
{{- $numbers := dict "runAsUser" .Values.uid "runAsGroup" .Values.gid "fsGroup" .Values.fsGroup -}}
{{- range $field, $number := $numbers -}}
{{- if not (kindIs "invalid" $number) }}{{ $_ := set $context $field (int64 $number) }}{{ end -}}
{{- end -}}
{{- toJson $context -}}
{{- end -}}

{{/*
A startup probe and no readiness probe: a server that is busy must not become unreachable. With
internal_ssl the server lets in nobody who has no certificate, as the kubelet.
*/}}
{{- define "user-server.startupProbe" -}}
{{- $prefix := index .Values.env "JUPYTERHUB_SERVICE_PREFIX" -}}
{{- if or (eq .Values.startupProbe.type "tcp") .Values.internal_ssl (not $prefix) -}}
tcpSocket:
  port: notebook-port
{{- else -}}
httpGet:
  port: notebook-port
  path: {{ printf "%s/%s" (trimSuffix "/" $prefix) .Values.startupProbe.path | quote }}
{{- end }}
periodSeconds: 1
timeoutSeconds: 5
failureThreshold: 3600
{{- end -}}
