{{- define "shared-socket.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "shared-socket.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* `kubectl shared-socket` finds the agent by app.kubernetes.io/name: that one is not to be overridden. */ -}}
{{- define "shared-socket.selectorLabels" -}}
app.kubernetes.io/name: shared-socket
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end -}}

{{- define "shared-socket.labels" -}}
{{ include "shared-socket.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- if .Values.helmLabels }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}
{{- end -}}

{{- define "shared-socket.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "shared-socket.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- /* "true" or nothing */ -}}
{{- define "shared-socket.kubernetesApi" -}}
{{- $ofFile := default dict .Values.config.kubernetesApi -}}
{{- if or .Values.kubernetesApi.enabled $ofFile.enabled -}}true{{- end -}}
{{- end -}}

{{- define "shared-socket.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "shared-socket.port" -}}
{{- $address := .Values.config.endpoints.http -}}
{{- regexFind "[0-9]+$" $address | required (printf "config.endpoints.http: %q has no port" $address) -}}
{{- end -}}

{{- /* "true" or nothing; the files may also be of a place that the agent has anyway, such as /var/lib/shared-socket */ -}}
{{- define "shared-socket.tls" -}}
{{- if or .Values.metrics.tls.secretName .Values.config.endpoints.tls -}}true
{{- else if .Values.metrics.tls.clientCaSecretName -}}
{{- fail "metrics.tls.clientCaSecretName: who shows a certificate must be shown one, too: set metrics.tls.secretName" -}}
{{- end -}}
{{- end -}}

{{- /* The directory and not the socket: a runtime that restarts makes a new socket, and a mount of the old one is dead. */ -}}
{{- define "shared-socket.runtimeDirectory" -}}
{{- $endpoint := .Values.config.runtime.endpoint -}}
{{- if not (hasPrefix "unix:///" $endpoint) -}}
{{- fail (printf "config.runtime.endpoint: %q is not unix:///PATH" $endpoint) -}}
{{- end -}}
{{- trimPrefix "unix://" $endpoint | dir -}}
{{- end -}}
