package schema

import "embed"

// Contract is the machine-readable contract: asyncapi.yaml, and in events/ one JSON Schema for each
// event, request and reply that it refers to.
//
//go:embed events/*.json asyncapi.yaml
var Contract embed.FS
