package papermap

import (
	"bytes"
	"encoding/base64"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestSecretNeverPrints(t *testing.T) {
	const canary = "sk_canary"
	pair := KeyPair{ID: "ak", Secret: NewSecret(canary)}
	ws := Workspace{ID: "w", Key: pair, EmbedKey: pair}
	hidden := struct{ pair KeyPair }{pair} // fmt calls no method of what is behind an unexported field
	var all bytes.Buffer
	for _, v := range []any{
		pair.Secret, &pair.Secret, pair, &pair, ws, &ws, hidden, &hidden, []Secret{pair.Secret},
		map[Secret]Secret{pair.Secret: pair.Secret},
		NewMinter(pair, "w"), NewClient(ws, ClientOptions{}), fmt.Errorf("with %v", pair),
		errors.New(fmt.Sprint(hidden)),
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T", "%t",
			"%w"} {
			fmt.Fprintf(&all, verb+"\n", v)
		}
		slog.New(slog.NewJSONHandler(&all, nil)).Info("x", "value", v)
		slog.New(slog.NewTextHandler(&all, nil)).Info("x", "value", v)
		for _, encode := range []func(any) ([]byte, error){json.Marshal, xml.Marshal,
			func(v any) ([]byte, error) {
				var b bytes.Buffer
				err := gob.NewEncoder(&b).Encode(v)
				return b.Bytes(), err
			}} {
			text, err := encode(v) // some cannot be encoded
			fmt.Fprintf(&all, "%s %v\n", text, err)
		}
	}
	for _, form := range []string{canary, fmt.Sprintf("%x", canary), fmt.Sprintf("%X", canary),
		fmt.Sprintf("%d", []byte(canary)), base64.StdEncoding.EncodeToString([]byte(canary))} {
		if i := strings.Index(all.String(), form); i >= 0 {
			t.Errorf("secret printed: %q", all.String()[max(0, i-100):i+len(form)])
		}
	}
	if pair.Secret.Reveal() != canary || pair.Secret != NewSecret(canary) ||
		pair.Secret == NewSecret("other") || (Secret{}).Reveal() != "" {
		t.Error("a secret is not its text")
	}
}
