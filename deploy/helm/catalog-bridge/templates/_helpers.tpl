{{- define "catalog-bridge.name" -}}
{{- .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "catalog-bridge.fullname" -}}
{{- if contains .Chart.Name .Release.Name -}}
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

{{- define "catalog-bridge.usesSqlite" -}}
{{- if and (not .Values.existingConfigMap) (not .Values.existingSecret) (hasPrefix "sqlite:" (include "catalog-bridge.logUrl" .)) -}}true{{- end -}}
{{- end -}}

{{/* The config file: the user's, with the listeners that the Service and the probes need. */}}
{{- define "catalog-bridge.configFile" -}}
{{- $http := merge (dict) (default (dict) .Values.config.http) (dict "listen" "0.0.0.0:8219" "admin" "127.0.0.1:8220") -}}
{{- if not (or $http.tokens (hasKey $http "auth")) -}}
{{- $_ := set $http "auth" "none" -}}
{{- end -}}
{{- toYaml (set (deepCopy .Values.config) "http" $http) -}}
{{- end -}}

{{/* The container, for our own Deployment and for Backstage's pod alike. `sidecar` leaves the readiness probe out: our state
must never take Backstage out of its Service. */}}
{{- define "catalog-bridge.container" -}}
name: catalog-bridge
image: {{ include "catalog-bridge.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [run, --config, /etc/catalog-bridge/catalog-bridge.yaml]
ports:
  - name: bridge
    containerPort: 8219
    protocol: TCP
{{- with .root.Values.env }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
livenessProbe:
  httpGet: { path: /healthz, port: bridge }
  initialDelaySeconds: 10
  periodSeconds: 10
  failureThreshold: 6
{{- if not .sidecar }}
readinessProbe:
  httpGet: { path: /readyz, port: bridge }
  periodSeconds: 5
{{- end }}
resources:
  {{- toYaml .root.Values.resources | nindent 2 }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  capabilities: { drop: [ALL] }
  seccompProfile: { type: RuntimeDefault }
volumeMounts:
  - name: catalog-bridge-config
    mountPath: /etc/catalog-bridge
    readOnly: true
  - name: catalog-bridge-temporary
    mountPath: /tmp
{{- if include "catalog-bridge.usesSqlite" .root }}
  - name: catalog-bridge-log
    mountPath: /var/lib/catalog-bridge
{{- end }}
{{- with .root.Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "catalog-bridge.volumes" -}}
- name: catalog-bridge-config
{{- if .Values.existingSecret }}
  secret: { secretName: {{ .Values.existingSecret }} }
{{- else }}
  configMap: { name: {{ default (include "catalog-bridge.fullname" .) .Values.existingConfigMap }} }
{{- end }}
- name: catalog-bridge-temporary
  emptyDir: { sizeLimit: 64Mi }
{{- if include "catalog-bridge.usesSqlite" . }}
- name: catalog-bridge-log
{{- if .Values.persistence.enabled }}
  persistentVolumeClaim: { claimName: {{ default (include "catalog-bridge.fullname" .) .Values.persistence.existingClaim }} }
{{- else }}
  emptyDir: {}
{{- end }}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
