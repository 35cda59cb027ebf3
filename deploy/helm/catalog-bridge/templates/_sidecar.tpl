{{/*
The bridge in Backstage's pod. Three templates for a chart that owns its pod (include them with this chart's context, in a parent
chart `index .Subcharts "catalog-bridge"`), and the values for Backstage's official chart, which are made of the same three.

Rule: nothing of ours may take Backstage down. So there is no readiness probe, a liveness probe of our own progress alone, limits on
what we take; what we mount or read is optional; and `--stay` keeps the process alive where it would end, because a pod is
ready only while all of its containers run.
*/}}

{{- define "catalog-bridge.sidecarContainer" -}}
{{- $container := omit (include "catalog-bridge.container" . | fromYaml) "readinessProbe" -}}
{{- $_ := set $container "args" (list "run" "--stay" "0.0.0.0:8219" "--config" "/etc/catalog-bridge/catalog-bridge.yaml") -}}
{{- range $container.envFrom -}}
{{- range $source := values . -}}
{{- if kindIs "map" $source -}}{{- $_ := set $source "optional" true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- range $container.env -}}
{{- range $source := values (default (dict) .valueFrom) -}}
{{- if hasKey $source "name" -}}{{- $_ := set $source "optional" true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- if .Values.sidecar.native -}}
{{- $_ := set $container "restartPolicy" "Always" -}}
{{- end -}}
{{- toYaml $container -}}
{{- end -}}

{{- define "catalog-bridge.sidecarVolumes" -}}
{{- $volumes := include "catalog-bridge.volumes" . | fromYamlArray -}}
{{- range $volumes -}}
{{- range $source := list .configMap .secret -}}
{{- if $source -}}{{- $_ := set $source "optional" true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- toYaml $volumes -}}
{{- end -}}

{{- define "catalog-bridge.sidecarAnnotations" -}}
checksum/catalog-bridge: {{ include "catalog-bridge.configFile" . | sha256sum }}
{{- end -}}

{{/* Values of the chart backstage/backstage. */}}
{{- define "catalog-bridge.sidecarValues" -}}
{{- range .Values.env -}}
{{- if hasKey . "value" -}}
{{- fail (printf "env holds %s in clear text, and with mode sidecar it would lie in a ConfigMap: use valueFrom, envFrom, or config" .name) -}}
{{- end -}}
{{- end -}}
{{- $container := include "catalog-bridge.sidecarContainer" . | fromYaml -}}
backstage:
  podAnnotations:
    {{- include "catalog-bridge.sidecarAnnotations" . | nindent 4 }}
  {{ ternary "initContainers" "extraContainers" .Values.sidecar.native }}:
    - {{- toYaml $container | nindent 6 }}
  extraVolumes:
    {{- include "catalog-bridge.sidecarVolumes" . | nindent 4 }}
  # That chart renders extraVolumes only when extraVolumeMounts, which are Backstage's own container's, are set too: an empty volume.
  extraVolumeMounts:
    - name: catalog-bridge-temporary
      mountPath: /var/run/catalog-bridge
      readOnly: true
  {{- if .Values.persistence.enabled }}
  # So that the bridge may write to its volume.
  podSecurityContext:
    fsGroup: 65532
  {{- end }}
service:
  extraPorts:
    - name: bridge
      port: {{ .Values.service.port }}
      targetPort: bridge
      protocol: TCP
{{- if .Values.networkPolicy.enabled }}
networkPolicy:
  ingressRules:
    customRules:
      - ports:
          - port: 8219
            protocol: TCP
        {{- with .Values.networkPolicy.from }}
        from:
          {{- toYaml . | nindent 10 }}
        {{- end }}
{{- end }}
{{- with .Values.serviceAccount.annotations }}
serviceAccount:
  annotations:
    {{- toYaml . | nindent 4 }}
{{- end }}
{{- end -}}
