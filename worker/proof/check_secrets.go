package proof

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"papermap-worker/papermap"
)

// secrets searches every text, except the publishers' data and the answers with tokens, for planted
// secrets, the workspaces' own, tokens and their signatures.
func (c *checker) secrets() {
	type needle struct{ what, text string }
	var needles []needle
	canaries := slices.Clone(c.Canaries)
	for _, w := range c.Workspaces {
		canaries = append(canaries, w.Key.Secret.Reveal(), w.EmbedKey.Secret.Reveal())
	}
	for i, canary := range canaries {
		if canary == "" {
			continue
		}
		for form, text := range forms(canary) {
			needles = append(needles, needle{fmt.Sprintf("secret no. %d (%s)", i+1, form), text})
		}
	}
	slices.SortFunc(needles, func(a, b needle) int { return strings.Compare(a.what, b.what) })

	var texts haystack
	texts.add("Texts", reflect.ValueOf(c.Texts))
	for _, part := range []struct {
		name string
		list any
	}{
		{"Requests", c.Requests}, {"Dashboards", c.Dashboards},
		{"Mappings", c.Mappings}, {"Attempts", c.Attempts},
		{"Outbox", c.Outbox}, {"Usage", c.Usage}, {"Out", c.Out}, {"Dead", c.Dead},
	} {
		texts.add(part.name, reflect.ValueOf(part.list))
	}
	all := texts.text.String()
	for _, n := range needles {
		if n.text == "" {
			continue
		}
		if i := strings.Index(all, n.text); i >= 0 {
			c.report(NoSecret, "", "%s is in %s", n.what, texts.at(i))
		}
	}
	// There are too many tokens to search everything for each: only long words can have one.
	minted := map[string]string{}
	for i, t := range c.Tokens {
		if claims, err := papermap.ParseToken(t.Text); err == nil && t.Text != "" {
			minted[strings.TrimRight(t.Text, "=")] = fmt.Sprintf("token no. %d", i+1)
			minted[claims.Signature] = fmt.Sprintf("the signature of token no. %d", i+1)
		}
	}
	for word, place := range longWords(all) {
		for text, what := range minted {
			if i := strings.Index(word, text); i >= 0 {
				c.report(NoSecret, "", "%s is in %s", what, texts.at(place+i))
			}
		}
	}
}

// wordForm is a word that is long enough for a token or a signature, which is a SHA-256 in hex.
var wordForm = regexp.MustCompile(`[-_0-9A-Za-z]{64,}`)

// longWords returns the words of a text in which a token or a signature could be, each with one
// position.
func longWords(text string) map[string]int {
	words := map[string]int{}
	for _, at := range wordForm.FindAllStringIndex(text, -1) {
		words[text[at[0]:at[1]]] = at[0]
	}
	return words
}

// haystack is many texts in one, to be searched together.
type haystack struct {
	text   strings.Builder
	starts []int
	names  []string
}

// add adds every string and byte slice in v, at any depth.
func (h *haystack) add(name string, v reflect.Value) {
	keep := func(text string) {
		h.starts, h.names = append(h.starts, h.text.Len()), append(h.names, name)
		h.text.WriteString(text + "\x00")
	}
	switch v.Kind() {
	case reflect.String:
		keep(v.String())
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				h.add(name+"."+f.Name, v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			keep(string(v.Bytes()))
			return
		}
		for i := range v.Len() {
			h.add(fmt.Sprintf("%s[%d]", name, i), v.Index(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			h.add(name+" (a key)", k)
			h.add(fmt.Sprintf("%s[%q]", name, k), v.MapIndex(k))
		}
	}
}

// at names the text at a position.
func (h *haystack) at(place int) string {
	return h.names[sort.SearchInts(h.starts, place+1)-1]
}

// forms returns the ways in which a secret could be written in a text, by name.
func forms(secret string) map[string]string {
	f := map[string]string{
		"raw": secret, "hex": hex.EncodeToString([]byte(secret)), "upper-case hex": fmt.Sprintf("%X", secret),
		"in a query": url.QueryEscape(secret), "in a path": url.PathEscape(secret),
	}
	quoted := strconv.Quote(secret)
	f["quoted"] = quoted[1 : len(quoted)-1]
	// In base64 three bytes are four characters, so the bytes before the secret shift it. Only the
	// characters that depend on the secret alone are searched for.
	for shift, own := range []int{0, 2, 3} {
		shifted := append(make([]byte, shift), secret...)
		for name, encoding := range map[string]*base64.Encoding{
			"base64": base64.RawStdEncoding, "URL-safe base64": base64.RawURLEncoding,
		} {
			text := encoding.EncodeToString(shifted)
			if len(shifted)%3 != 0 {
				text = text[:len(text)-1]
			}
			f[fmt.Sprintf("%s, shifted by %d", name, shift)] = text[min(own, len(text)):]
		}
	}
	return f
}
