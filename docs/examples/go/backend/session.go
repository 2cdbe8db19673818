package main

import (
	"crypto/rand"
	"net/http"
	"sync"
)

// sessions are the tenants of those who logged in, by the value of their cookie.
type sessions struct{ tenants sync.Map }

func (s *sessions) login(w http.ResponseWriter, r *http.Request) {
	tenant, ok := tenants[r.FormValue("user")] // check a password here
	if !ok {
		answer(w, 401, []byte(`{"code":"LOG_IN","message":"unknown user"}`))
		return
	}
	id := rand.Text()
	s.tenants.Store(id, tenant)
	http.SetCookie(w, &http.Cookie{
		Name: "session", Value: id, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// tenant is that of the request's session; empty without one.
func (s *sessions) tenant(r *http.Request) string {
	cookie, err := r.Cookie("session")
	if err != nil {
		return ""
	}
	tenant, _ := s.tenants.Load(cookie.Value)
	name, _ := tenant.(string)
	return name
}
