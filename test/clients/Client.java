// A Java program as a guest runs one: java.net.http with the CA in a trust store of its own, over HTTP/1.1 and HTTP/2.
//
//   java Client.java NAME PORT CA-FILE HTTP_1_1|HTTP_2
//
// The name's address comes from -Djdk.net.hosts.file. Prints one line for each answer.
import java.io.FileInputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.TrustManagerFactory;

public class Client {
  public static void main(String[] args) throws Exception {
    KeyStore store = KeyStore.getInstance(KeyStore.getDefaultType());
    store.load(null, null);
    try (FileInputStream in = new FileInputStream(args[2])) {
      store.setCertificateEntry("sandbox", CertificateFactory.getInstance("X.509").generateCertificate(in));
    }
    TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
    trust.init(store);
    SSLContext context = SSLContext.getInstance("TLS");
    context.init(null, trust.getTrustManagers(), null);
    HttpClient client = HttpClient.newBuilder().sslContext(context).version(HttpClient.Version.valueOf(args[3])).build();
    for (int i = 0; i < 3; i++) {
      URI uri = URI.create("https://" + args[0] + ":" + args[1] + "/" + i);
      HttpResponse<String> answer = client.send(HttpRequest.newBuilder(uri).POST(HttpRequest.BodyPublishers.ofString("x".repeat(100_000 * i))).build(), HttpResponse.BodyHandlers.ofString());
      System.out.println(answer.version() + " " + answer.statusCode() + " " + answer.body().trim());
    }
  }
}
