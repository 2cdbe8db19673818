# A static binary in an empty image: no shell, no package manager, no root.
FROM golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION=
ARG COMMIT=
ARG DATE=
RUN CGO_ENABLED=1 go build -trimpath -tags osusergo,netgo,sqlite_omit_load_extension -ldflags "-s -w -linkmode external -extldflags -static -X main.version=$VERSION -X main.commit=$COMMIT -X main.date=$DATE" -o /papermap-worker .
RUN mkdir -p /data /tmp-empty && chmod 1777 /tmp-empty

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /papermap-worker /papermap-worker
COPY --from=build --chown=65532:65532 /data /data
COPY --from=build --chown=65532:65532 /tmp-empty /tmp
USER 65532:65532
WORKDIR /data
ENV HTTP_ADDR=0.0.0.0:8080
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=6s --start-period=30s --retries=3 CMD ["/papermap-worker", "health"]
ENTRYPOINT ["/papermap-worker"]
CMD ["serve"]
