// Package papermap calls Papermap's external API and mints its embed tokens.
//
// A [Client] makes signed requests for one workspace. An embed token needs no request: it is signed
// here, with the workspace's key.
//
//	ws := papermap.Workspace{
//		ID: "ws-123", APIURL: "https://prod.dataapi.papermap.ai",
//		Key:      papermap.KeyPair{ID: "ak_1", Secret: papermap.NewSecret("sk_1")},
//		EmbedKey: papermap.KeyPair{ID: "ak_2", Secret: papermap.NewSecret("sk_2")},
//	}
//	client := papermap.NewClient(ws, papermap.ClientOptions{})
//	defer client.Close()
//	d, err := client.CreateDashboard(ctx, papermap.NewDashboard{TenantID: "org-1", Title: "Acme"})
//	var failed *papermap.Error
//	if errors.As(err, &failed) && failed.Class == papermap.Unknown {
//		// There may be a dashboard now. It cannot be looked up.
//	}
//	token, err := papermap.MintToken(ws.EmbedKey, ws.ID, "org-1", d.ID, time.Now().Add(time.Hour))
//
// What it promises:
//
//   - [Sign], [MintToken], [ParseToken] and [EmbedURL] are pure functions, tested against golden
//     values in testdata.
//   - Every request is limited in time and size, no redirect is followed, and a connection is reused
//     only shortly after its last answer, if nothing has arrived on it since.
//   - Every failed request is an [*Error] whose [Class] says what is known about the outcome. Only
//     requests that were provably not processed ([Retryable]) are retried inside a call, within
//     [RetryBudget], and not when Deferred.
//
// What it cannot promise: creating a dashboard is not idempotent and has no lookup, so a create
// whose answer was lost ends as [Unknown], and the caller decides what to do.
//
// The API is documented at https://docs.papermap.ai (multi-tenancy guide and API reference). Where
// the documentation is silent the code is lenient, and a comment says so. One example is the field
// names of the usage report: usagefields.go has the table of accepted names.
package papermap

import (
	"fmt"
	"log/slog"
	"unique"
)

// Workspace is one Papermap workspace: the address of its API and the keys that sign for it.
type Workspace struct {
	ID       string
	APIURL   string  // base address without a trailing slash, e.g. https://prod.dataapi.papermap.ai
	Key      KeyPair // signs API requests
	EmbedKey KeyPair // signs embed tokens; a separate pair limits what a leaked token can do
	EmbedURL string  // of the page for iframes, without a query
}

// KeyPair is an API key of a workspace (ak_…, sk_…).
type KeyPair struct {
	ID     string
	Secret Secret
}

// Secret is a text that prints as "[secret]" in fmt, slog, JSON and text encoders. The text is
// behind a handle because fmt and encoders read the fields of unexported structs without calling a
// method. Secrets of the same text are equal.
type Secret struct{ text unique.Handle[string] }

// NewSecret hides text.
func NewSecret(text string) Secret { return Secret{unique.Make(text)} }

// Reveal returns the text. The zero Secret is the empty text.
func (s Secret) Reveal() string {
	if s == (Secret{}) {
		return ""
	}
	return s.text.Value()
}

const redactedSecret = "[secret]"

// Format, String, LogValue and MarshalText hide the text from fmt, slog and encoders.
func (Secret) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redactedSecret)) }
func (Secret) String() string               { return redactedSecret }
func (Secret) LogValue() slog.Value         { return slog.StringValue(redactedSecret) }
func (Secret) MarshalText() ([]byte, error) { return []byte(redactedSecret), nil }
