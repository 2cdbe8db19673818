package simulator

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"html/template"
	"math/rand/v2"
	"strings"
)

const embedStyle = `:root{color-scheme:light dark}` +
	`body{font:16px/1.5 system-ui,sans-serif;margin:1.5rem;` +
	`color:light-dark(#1c2430,#e6e9ee);background:light-dark(#fff,#151a21)}` +
	`h1{font-size:1.3rem;margin:0 0 1rem}` +
	`svg{display:block;width:100%;max-width:48rem;height:auto}` +
	`.bar{fill:light-dark(#2f6fde,#6ea0ff)}` +
	`.line{fill:none;stroke:light-dark(#d9822b,#ffb366);stroke-width:2}` +
	`.axis{stroke:light-dark(#c9d0da,#3a4451)}` +
	`text{font-size:11px;fill:light-dark(#5b6675,#9aa5b4);text-anchor:middle}` +
	`dl{display:grid;grid-template-columns:max-content 1fr;gap:.3rem 1rem;margin:1rem 0 0}` +
	`dt,footer{color:light-dark(#5b6675,#9aa5b4)}dd{margin:0;overflow-wrap:anywhere}` +
	`footer{margin-top:1.5rem;font-size:.85rem}`

// embedScript counts down the token's remaining lifetime.
const embedScript = `const life=document.getElementById("life"),start=Date.now();` +
	`function show(){const left=Math.ceil(life.dataset.seconds-(Date.now()-start)/1000);` +
	`life.textContent=left>0?left+" s":"ended"}` +
	`if(life){show();setInterval(show,250)}`

var embedPage = template.Must(template.New("embedded").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{{.Title}}</title>
<style>` + embedStyle + `</style></head><body>
<h1>{{.Title}}</h1>
{{if .Refused}}<p>{{.Refused}}</p>
{{else}}<svg viewBox="0 0 600 220" role="img" aria-label="Revenue and active users by month">
<line class="axis" x1="20" y1="190.5" x2="590" y2="190.5"/>
{{range .Chart.Bars}}<rect class="bar" x="{{.X}}" y="{{.Y}}" width="30" height="{{.Height}}" rx="2">
<title>{{.Month}}: revenue {{.Value}} k</title></rect><text x="{{.Middle}}" y="207">{{.Month}}</text>
{{end}}<polyline class="line" points="{{.Chart.Line}}"/>
</svg>
<dl>
<dt>Tenant</dt><dd id="tenant">{{.Tenant}}</dd>
<dt>Workspace</dt><dd>{{.Workspace}}</dd>
<dt>Dashboard</dt><dd id="dashboard">{{.Dashboard}}</dd>
<dt>Token expires</dt><dd><time datetime="{{.Expires}}">{{.Expires}}</time>, in
<output id="life" data-seconds="{{.Life}}">{{.Life}} s</output></dd>
</dl>
{{end}}<footer>Papermap simulator: a stand-in for the embedded dashboard.</footer>
<script>` + embedScript + `</script></body></html>
`))

// embedPolicy allows the page only its own script and style, and allows every site to frame it, as
// an embedded dashboard requires.
var embedPolicy = fmt.Sprintf("default-src 'none'; style-src '%s'; script-src '%s'; "+
	"base-uri 'none'; form-action 'none'; frame-ancestors *", sourceHash(embedStyle), sourceHash(embedScript))

func sourceHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256-" + base64.StdEncoding.EncodeToString(sum[:])
}

// chart is what a dashboard shows: numbers made up from its id.
type chart struct {
	Bars []bar
	Line string // the points of active users
}

type bar struct {
	Month                string
	X, Y, Height, Middle int
	Value                int // in thousands
}

func newChart(dashboardID string) (c chart) {
	seed := fnv.New64a()
	_, _ = seed.Write([]byte(dashboardID))
	random := rand.New(rand.NewPCG(seed.Sum64(), 0))
	revenue, users := 60+random.IntN(40), 120+random.IntN(30)
	var points []string
	for i, month := range strings.Fields("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec") {
		revenue = min(max(revenue+random.IntN(36)-13, 20), 170)
		users = min(max(users-random.IntN(22)+6, 15), 180)
		x := 26 + 47*i
		c.Bars = append(c.Bars, bar{month, x, 190 - revenue, revenue, x + 15, revenue})
		points = append(points, fmt.Sprintf("%d,%d", x+15, users))
	}
	c.Line = strings.Join(points, " ")
	return c
}
