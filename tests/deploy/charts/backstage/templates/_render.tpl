{{/* A value becomes text and passes through tpl, as in that chart's library. */}}
{{- define "render" -}}
{{- tpl (toYaml .value) .context -}}
{{- end -}}
