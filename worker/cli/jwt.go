package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// jwtCmd mints a bearer token for the REST API, to try it. In production the identity provider does.
type jwtCmd struct {
	TenantID    []string      `name:"tenant-id" help:"Tenant whose dashboard the token may see. Repeatable."`
	Scope       []string      `help:"papermap:admin or papermap:create. Repeatable."`
	TTL         time.Duration `name:"ttl" default:"1h" help:"Lifetime."`
	jwtSettings `group:"REST and console"`
}

func (c *jwtCmd) Run(a *app) error {
	p := a.parser()
	secret := p.secret("HTTP_JWT_SECRET")
	p.check(p.given("HTTP_JWT_SECRET"), "HTTP_JWT_SECRET is required: tokens are signed with it")
	if err := p.err(); err != nil {
		return err
	}
	scopes := strings.Fields(strings.Join(c.Scope, " "))
	if len(c.TenantID) == 0 && len(scopes) == 0 {
		return usageErrorf("the token would permit nothing: use --tenant-id or --scope")
	}
	if c.TTL < time.Second {
		return usageErrorf("--ttl: use 1s or more")
	}
	now := time.Now()
	claims := jwt.MapClaims{
		"sub": "papermap-worker jwt", "iat": now.Unix(), "exp": now.Add(c.TTL).Unix(),
	}
	for name, text := range map[string]string{
		"iss": c.JWTIssuer, "aud": c.JWTAudience, "scope": strings.Join(scopes, " "),
	} {
		if text != "" {
			claims[name] = text
		}
	}
	switch len(c.TenantID) {
	case 0:
	case 1:
		claims["tenant_id"] = c.TenantID[0]
	default:
		claims["tenants"] = c.TenantID
	}
	token, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(secret))
	if err != nil {
		return errors.New("sign the token")
	}
	_, err = fmt.Fprintln(a.stdout, token)
	return err
}
