{{- /* The files of the access control as JSON: the variable that names each, and the file's name in the volume. */ -}}
{{- define "gateway.accessFiles" -}}
{{- $files := dict -}}
{{- with .Values.access -}}
{{- if or .tokensKey .tokens -}}{{- $_ := set $files "GATEWAY_TOKENS_FILE" "tokens" -}}{{- end -}}
{{- if or .policyKey .configMapKeys.policy .policy -}}{{- $_ := set $files "GATEWAY_POLICY_FILE" "policy" -}}{{- end -}}
{{- if .configMapKeys.jwks -}}{{- $_ := set $files "GATEWAY_JWT_JWKS" "jwks" -}}{{- end -}}
{{- if .jwtSecretKey -}}{{- $_ := set $files "GATEWAY_JWT_SECRET_FILE" "jwt-secret" -}}{{- end -}}
{{- if .sessionKeysKey -}}{{- $_ := set $files "GATEWAY_SESSION_KEY_FILE" "session-keys" -}}{{- end -}}
{{- end -}}
{{- toJson $files -}}
{{- end -}}

{{- /* The Secret and the ConfigMap that the chart itself makes. */ -}}
{{- define "gateway.accessName" -}}
{{- include "gateway.name" . | trunc 56 | trimSuffix "-" }}-access
{{- end -}}

{{- /* The sources of the projected volume with these files. */ -}}
{{- define "gateway.accessSources" -}}
{{- with .Values.access }}
{{- with .existingSecret }}
- secret:
    name: {{ . | quote }}
    items:
      {{- with $.Values.access }}
      {{- range $path, $key := dict "tokens" .tokensKey "policy" .policyKey "jwt-secret" .jwtSecretKey "session-keys" .sessionKeysKey }}
      {{- if $key }}
      - key: {{ $key | quote }}
        path: {{ $path }}
      {{- end }}
      {{- end }}
      {{- end }}
{{- end }}
{{- with .existingConfigMap }}
- configMap:
    name: {{ . | quote }}
    items:
      {{- range $path, $key := $.Values.access.configMapKeys }}
      {{- if $key }}
      - key: {{ $key | quote }}
        path: {{ $path }}
      {{- end }}
      {{- end }}
{{- end }}
{{- if .tokens }}
- secret:
    name: {{ include "gateway.accessName" $ }}
    items:
      - key: tokens
        path: tokens
{{- end }}
{{- if .policy }}
- configMap:
    name: {{ include "gateway.accessName" $ }}
    items:
      - key: policy
        path: policy
{{- end }}
{{- end }}
{{- end -}}

{{- /* Whether the gateway knows identities with roles, and not only the one token: "true", or empty. */ -}}
{{- define "gateway.hasRoles" -}}
{{- if or .Values.settings.jwtIssuer .Values.settings.authProxyHeader (include "gateway.accessFiles" . | fromJson) -}}true{{- end -}}
{{- end -}}

{{- /* Whether clients need credentials: "true", or empty. */ -}}
{{- define "gateway.guarded" -}}
{{- if or .Values.token.existingSecret (include "gateway.hasRoles" .) -}}true{{- end -}}
{{- end -}}

{{- /* The paths that are published outside the cluster, as a JSON array. */ -}}
{{- define "gateway.paths" -}}
{{- $paths := list "/v1/kv" "/v1/watch" -}}
{{- if include "gateway.guarded" . -}}{{- $paths = append $paths "/v1/access" -}}{{- end -}}
{{- if .Values.access.sessionKeysKey -}}{{- $paths = append $paths "/v1/session" -}}{{- end -}}
{{- if .Values.settings.jwtIssuer -}}{{- $paths = append $paths "/.well-known/oauth-protected-resource" -}}{{- end -}}
{{- toJson $paths -}}
{{- end -}}

{{- /* Each file has one source, and each source a file. */ -}}
{{- define "gateway.checkAccess" -}}
{{- with .Values.access -}}
{{- $keys := compact (list .tokensKey .policyKey .jwtSecretKey .sessionKeysKey) -}}
{{- if and .existingSecret (not $keys) -}}
{{- fail "access.existingSecret needs a key: tokensKey, policyKey, jwtSecretKey or sessionKeysKey" -}}
{{- end -}}
{{- if and $keys (not .existingSecret) -}}
{{- fail (printf "access.existingSecret is required: the Secret with the key %s" (first $keys)) -}}
{{- end -}}
{{- $keys = compact (values .configMapKeys) -}}
{{- if and .existingConfigMap (not $keys) -}}
{{- fail "access.existingConfigMap needs a key: configMapKeys.policy or configMapKeys.jwks" -}}
{{- end -}}
{{- if and $keys (not .existingConfigMap) -}}
{{- fail (printf "access.existingConfigMap is required: the ConfigMap with the key %s" (first $keys)) -}}
{{- end -}}
{{- if gt (len (compact (list .policyKey .configMapKeys.policy .policy))) 1 -}}
{{- fail "access has the policy twice; set one of access.policyKey, access.configMapKeys.policy and access.policy" -}}
{{- end -}}
{{- if and .tokensKey .tokens -}}
{{- fail "access has the tokens twice; set one of access.tokensKey and access.tokens" -}}
{{- end -}}
{{- if and .configMapKeys.jwks $.Values.settings.jwtJwks -}}
{{- fail "access.configMapKeys.jwks and settings.jwtJwks both say where the issuer's keys are; set one of them" -}}
{{- end -}}
{{- if and .sessionKeysKey (not (or .tokensKey .tokens $.Values.token.existingSecret $.Values.settings.jwtIssuer)) -}}
{{- fail "access.sessionKeysKey needs bearer tokens, which begin sessions: access.tokensKey, access.tokens, token.existingSecret or settings.jwtIssuer" -}}
{{- end -}}
{{- end -}}
{{- end -}}
