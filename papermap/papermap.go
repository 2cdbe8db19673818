// Package papermap speaks Papermap's external API and mints its embed tokens.
//
// What it promises:
//
//   - [Sign], [MintToken], [ParseToken] and [EmbedURL] are pure functions, held to golden values in testdata.
//   - A [Client] bounds every request in time and size, follows no redirect, and never lets the HTTP transport
//     send a request twice.
//   - Every failed request is an [*Error] whose [Class] says what is known of the outcome. Only a failure that
//     provably was not processed ([Retryable]) is tried again inside a call, for a few seconds at most, and not when
//     it is Deferred.
//
// What it cannot promise: creating a dashboard is not idempotent and cannot be looked up, so a call whose answer
// was lost ends as [Unknown], and the caller decides what that means.
//
// The API is documented at https://docs.papermap.ai (multi-tenancy guide and API reference). Where the
// documentation is silent the code is lenient and says so.
package papermap

import (
	"fmt"
	"log/slog"
	"unique"
)

// Workspace is one Papermap workspace: where its API is and what signs for it.
type Workspace struct {
	ID       string
	APIURL   string  // base address without a trailing slash, e.g. https://prod.dataapi.papermap.ai
	Key      KeyPair // signs API requests
	EmbedKey KeyPair // signs embed tokens; a pair of its own limits what a leaked token can do
}

// KeyPair is an API key of a workspace (ak_…, sk_…).
type KeyPair struct {
	ID     string
	Secret Secret
}

// Secret is a text that prints as "[secret]" in every way that fmt, slog, JSON and text encoders know. It is behind a handle,
// because fmt and encoders reach the fields of unexported ones without calling a method. Two of the same text are equal.
type Secret struct{ text unique.Handle[string] }

// NewSecret hides a text.
func NewSecret(text string) Secret { return Secret{unique.Make(text)} }

// Reveal is the text, for where it is used.
func (s Secret) Reveal() string {
	if s == (Secret{}) {
		return ""
	}
	return s.text.Value()
}

const redacted = "[secret]"

func (Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (Secret) String() string               { return redacted }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
