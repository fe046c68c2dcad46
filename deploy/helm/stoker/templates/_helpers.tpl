{{- define "stoker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "stoker.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains (include "stoker.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "stoker.name" .) | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "stoker.selector" -}}
app.kubernetes.io/name: {{ include "stoker.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "stoker.labels" -}}
{{ include "stoker.selector" . }}
app.kubernetes.io/part-of: stoker
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "stoker.image" -}}
{{- $tag := default .root.Chart.AppVersion .root.Values.image.tag -}}
{{- if .root.Values.image.registry -}}{{ trimSuffix "/" .root.Values.image.registry }}/{{- end -}}
{{ .name }}:{{ $tag }}
{{- end -}}

{{- /* What has to be said before anything is installed. */ -}}
{{- define "stoker.check" -}}
{{- if not .Values.etcd.endpoints -}}
{{- fail "etcd.endpoints is empty: give the members of an etcd cluster, like --set etcd.endpoints={http://etcd:2379}" -}}
{{- end -}}
{{- $both := and .Values.tls.balancerSecret .Values.tls.runnerSecret -}}
{{- if and (not $both) (or .Values.tls.balancerSecret .Values.tls.runnerSecret) -}}
{{- fail "tls.balancerSecret and tls.runnerSecret belong together: give both" -}}
{{- end -}}
{{- if and (not $both) (not .Values.tls.insecure) -}}
{{- fail "tls.balancerSecret and tls.runnerSecret are not set: give them (`stoker certs` makes certificates), or say tls.insecure=true where something else encrypts" -}}
{{- end -}}
{{- if and $both (not .Values.access.secret) (not .Values.tls.insecure) -}}
{{- fail "access.secret is not set: give a secret with access.yaml, which says who may invoke, manage and observe what, or say tls.insecure=true where everybody may" -}}
{{- end -}}
{{- if and .Values.serviceMonitor.enabled .Values.access.secret (not .Values.serviceMonitor.tokenSecret) -}}
{{- fail "serviceMonitor.tokenSecret is not set: servers with an access file show metrics to those who may observe: give a secret whose key `token` is a token with `observe: [\"*\"]`" -}}
{{- end -}}
{{- end -}}

{{- /* Variables that both servers have. */ -}}
{{- define "stoker.env" -}}
- name: STOKER_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
# What others here refer to has to come first.
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: STOKER_ETCD
  value: {{ join "," .Values.etcd.endpoints | quote }}
- name: STOKER_LOG_LEVEL
  value: {{ .Values.log.level | quote }}
- name: STOKER_LOG_FORMAT
  value: json
{{- with .Values.etcd.authSecret }}
- name: STOKER_ETCD_USER
  valueFrom: {secretKeyRef: {name: {{ . }}, key: username}}
- name: STOKER_ETCD_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ . }}, key: password}}
{{- end }}
{{- if .Values.etcd.tlsSecret }}
- name: STOKER_ETCD_CA
  value: /etc/stoker/etcd/ca.crt
- name: STOKER_ETCD_CERTIFICATE
  value: /etc/stoker/etcd/tls.crt
- name: STOKER_ETCD_KEY
  value: /etc/stoker/etcd/tls.key
{{- end }}
{{- if .Values.telemetry.endpoint }}
- name: STOKER_TELEMETRY_ENDPOINT
  value: {{ .Values.telemetry.endpoint | quote }}
- name: STOKER_TELEMETRY_RATIO
  value: {{ .Values.telemetry.ratio | quote }}
{{- end }}
{{- end -}}

{{- define "stoker.scheme" -}}
{{- if .Values.tls.balancerSecret -}}https{{- else -}}http{{- end -}}
{{- end -}}

{{- /* TLS of one kind of server, and whom it lets in: `secret` and `access` are its own. */ -}}
{{- define "stoker.tls.env" -}}
{{- if .secret }}
- name: STOKER_TLS_CA
  value: /etc/stoker/tls/ca.crt
- name: STOKER_TLS_CERTIFICATE
  value: /etc/stoker/tls/tls.crt
- name: STOKER_TLS_KEY
  value: /etc/stoker/tls/tls.key
{{- end }}
{{- if .root.Values.tls.insecure }}
- name: STOKER_INSECURE
  value: "true"
{{- end }}
{{- if .access }}
- name: STOKER_ACCESS
  value: /etc/stoker/access/access.yaml
{{- end }}
{{- end -}}

{{- define "stoker.mounts" -}}
{{- if .secret }}
- {name: tls, mountPath: /etc/stoker/tls, readOnly: true}
{{- end }}
{{- if .root.Values.etcd.tlsSecret }}
- {name: etcd-tls, mountPath: /etc/stoker/etcd, readOnly: true}
{{- end }}
{{- if .access }}
- {name: access, mountPath: /etc/stoker/access, readOnly: true}
{{- end }}
{{- end -}}

{{- define "stoker.volumes" -}}
{{- with .secret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .root.Values.etcd.tlsSecret }}
- name: etcd-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- with .access }}
- name: access
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end -}}

{{- define "stoker.probes" -}}
{{- $scheme := include "stoker.scheme" . | upper -}}
startupProbe:
  httpGet: {path: /livez, port: admin, scheme: {{ $scheme }}}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /livez, port: admin, scheme: {{ $scheme }}}
  periodSeconds: 10
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: admin, scheme: {{ $scheme }}}
  periodSeconds: 2
  failureThreshold: 2
{{- end -}}

{{- /* The volume of a function's secret: an app and a name, which may have letters that a volume's name may not. */ -}}
{{- define "stoker.secret" -}}
secret-{{ printf "%s/%s" (index . 0) (index . 1) | sha256sum | trunc 16 }}
{{- end -}}

{{- /* Seconds of a time like 90s or 5m. */ -}}
{{- define "stoker.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int -}}
{{- if hasSuffix "ms" . -}}{{ div $number 1000 }}
{{- else if hasSuffix "s" . -}}{{ $number }}
{{- else if hasSuffix "m" . -}}{{ mul $number 60 }}
{{- else -}}{{ mul $number 3600 }}
{{- end -}}
{{- end -}}
