// Backend is a site that logs people in and answers <papermap-dashboard> with their tenant's token.
package main

import (
	"cmp"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
)

var tenants = map[string]string{"ada": "org-1", "bob": "org-2"} // of the people

func main() {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL), nats.MaxReconnects(-1))
	if err != nil {
		log.Fatal(err)
	}
	var sessions sessions
	http.HandleFunc("POST /login", sessions.login)
	http.HandleFunc("POST /dashboard-token", func(w http.ResponseWriter, r *http.Request) {
		tenant := sessions.tenant(r) // never what the browser says
		if tenant == "" {
			answer(w, 401, []byte(`{"code":"LOG_IN","message":"log in first"}`))
			return
		}
		request, _ := json.Marshal(map[string]string{"tenant_id": tenant})
		reply, err := nc.Request("papermap.rpc.embed-token", request, 2*time.Second)
		if err != nil {
			log.Print("request a token: ", err)
			answer(w, 503, []byte(`{"code":"UNAVAILABLE","message":"try again","retry_after":2}`))
			return
		}
		status, _ := strconv.Atoi(reply.Header.Get("Nats-Service-Error-Code"))
		answer(w, cmp.Or(status, 200), reply.Data)
	})
	http.Handle("/", http.FileServer(http.Dir(cmp.Or(os.Getenv("WEB"), "docs/examples/web"))))
	log.Fatal(http.ListenAndServe("127.0.0.1:"+cmp.Or(os.Getenv("PORT"), "3000"), nil))
}

func answer(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
