{{- define "catalog-bridge.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "catalog-bridge.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "catalog-bridge.selectorLabels" -}}
app.kubernetes.io/name: {{ include "catalog-bridge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "catalog-bridge.labels" -}}
{{ include "catalog-bridge.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Name, namespace and labels, the same on every object. */}}
{{- define "catalog-bridge.metadata" -}}
name: {{ include "catalog-bridge.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "catalog-bridge.labels" . | nindent 2 }}
{{- end -}}

{{- define "catalog-bridge.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "catalog-bridge.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "catalog-bridge.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end -}}
{{- end -}}

{{/* Where the log is: the text of `log`, or of `log.url`. */}}
{{- define "catalog-bridge.logUrl" -}}
{{- $log := default "" .Values.config.log -}}
{{- if kindIs "map" $log -}}{{- default "" $log.url -}}{{- else -}}{{- $log -}}{{- end -}}
{{- end -}}

{{/* A config from elsewhere is not seen here: `persistence.enabled` then says that its log is a SQLite file. */}}
{{- define "catalog-bridge.usesSqlite" -}}
{{- if or .Values.existingConfigMap .Values.existingSecret -}}
{{- if .Values.persistence.enabled -}}true{{- end -}}
{{- else if hasPrefix "sqlite:" (include "catalog-bridge.logUrl" .) -}}true
{{- end -}}
{{- end -}}

{{/* What cannot work is refused when it is rendered. */}}
{{- define "catalog-bridge.refuse" -}}
{{- $replicas := int .Values.replicas -}}
{{- $sqlite := include "catalog-bridge.usesSqlite" . -}}
{{- if eq .Values.mode "sidecar" -}}
{{- $replicas = int .Values.sidecar.backstageReplicas -}}
{{- end -}}
{{- if and $sqlite (gt $replicas 1) -}}
{{- $setting := ternary "sidecar.backstageReplicas" "replicas" (eq .Values.mode "sidecar") -}}
{{- fail (printf "%s is %d and the log is a SQLite file, which one daemon owns: set it to 1, or config.log to a PostgreSQL URL" $setting $replicas) -}}
{{- end -}}
{{- if not (or .Values.existingConfigMap .Values.existingSecret) -}}
{{- include "catalog-bridge.refuseSecrets" (dict "path" (list) "key" "" "value" .Values.config) -}}
{{- end -}}
{{- $listen := default "0.0.0.0:8219" (default (dict) .Values.config.http).listen -}}
{{- if not (hasSuffix ":8219" $listen) -}}
{{- fail (printf "config.http.listen is %s, and the Service and the probes of this chart dial port 8219: leave it out, and choose the port by service.port" $listen) -}}
{{- end -}}
{{- if and .Values.existingConfigMap .Values.existingSecret -}}
{{- fail "existingConfigMap and existingSecret both name the config file: set one of them" -}}
{{- end -}}
{{- end -}}

{{/* The config file: the user's, with the listeners that the Service and the probes need. */}}
{{- define "catalog-bridge.configFile" -}}
{{- $http := merge (dict) (default (dict) .Values.config.http) (dict "listen" "0.0.0.0:8219" "admin" "127.0.0.1:8220") -}}
{{- if not (or $http.tokens (hasKey $http "auth")) -}}
{{- $_ := set $http "auth" "none" -}}
{{- end -}}
{{- toYaml (set (deepCopy .Values.config) "http" $http) -}}
{{- end -}}

{{- define "catalog-bridge.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{/* The container in a Deployment of its own. */}}
{{- define "catalog-bridge.container" -}}
name: catalog-bridge
image: {{ include "catalog-bridge.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [run, --config, /etc/catalog-bridge/catalog-bridge.yaml]
ports:
  - name: bridge
    containerPort: 8219
    protocol: TCP
{{- with .Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- /* By its own progress only: a database or broker that is away is not mended by a restart. */}}
livenessProbe:
  httpGet: { path: /healthz, port: bridge }
  initialDelaySeconds: 10
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: bridge }
  periodSeconds: 5
  timeoutSeconds: 5
resources:
  {{- toYaml .Values.resources | nindent 2 }}
securityContext:
  {{- include "catalog-bridge.containerSecurityContext" . | nindent 2 }}
volumeMounts:
  - name: catalog-bridge-config
    mountPath: /etc/catalog-bridge
    readOnly: true
  - name: catalog-bridge-temporary
    mountPath: /tmp
{{- if include "catalog-bridge.usesSqlite" . }}
  - name: catalog-bridge-log
    mountPath: /var/lib/catalog-bridge
{{- end }}
{{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "catalog-bridge.volumes" -}}
- name: catalog-bridge-config
{{- if .Values.existingSecret }}
  secret:
    secretName: {{ .Values.existingSecret }}
{{- else }}
  configMap:
    name: {{ default (include "catalog-bridge.fullname" .) .Values.existingConfigMap }}
{{- end }}
- name: catalog-bridge-temporary
  emptyDir: { sizeLimit: 64Mi }
{{- if include "catalog-bridge.usesSqlite" . }}
- name: catalog-bridge-log
{{- if .Values.persistence.enabled }}
  persistentVolumeClaim:
    claimName: {{ default (include "catalog-bridge.fullname" .) .Values.persistence.existingClaim }}
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The config becomes a ConfigMap, which everybody in the namespace may read: a secret in clear text is refused. */}}
{{- define "catalog-bridge.refuseSecrets" -}}
{{- $path := .path -}}
{{- $owner := .key -}}
{{- if kindIs "map" .value -}}
{{- range $key, $value := .value -}}
{{- include "catalog-bridge.refuseSecrets" (dict "path" (append $path $key) "key" $key "value" $value) -}}
{{- end -}}
{{- else if kindIs "slice" .value -}}
{{- range $index, $value := .value -}}
{{- include "catalog-bridge.refuseSecrets" (dict "path" (append $path (toString $index)) "key" $owner "value" $value) -}}
{{- end -}}
{{- else if kindIs "string" .value -}}
{{- $isSecret := has $owner (list "key_password" "nkey" "password" "secret" "secret_access_key" "token") -}}
{{- $isPlain := not (or (contains "${" .value) (hasPrefix "file:" .value)) -}}
{{- $hasPassword := regexMatch "://[^/@:]*:[^/@]+@" (regexReplaceAll "\\$\\{[^}]*\\}" .value "") -}}
{{- if or (and $isSecret $isPlain) $hasPassword -}}
{{- fail (printf "config.%s holds a secret in clear text, and would lie in a ConfigMap: write ${NAME} and set the variable by env or envFrom, or file:/path and mount a Secret" (join "." $path)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
